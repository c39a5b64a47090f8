"""The command ``fundus-rt``. Nothing heavy is imported before a command needs it, so ``--help`` answers at once."""

from __future__ import annotations

import importlib
import sys
import warnings

import click

_COMMANDS = {
    "infer": "Answer photographs with a model.",
    "convert": "Turn a published checkpoint into a verified .onnx file.",
    "quantize": "Turn an .onnx file into one of lower precision, within its budget.",
    "build": "Turn an .onnx file into a TensorRT engine for this machine.",
    "parity": "Hold a shipped file against its checkpoint on photographs.",
    "certify": "Replay the original's answers on this device; write the certificate.",
    "evaluate": "Measure a model on your labelled photographs.",
    "robustness": "How answers move when photographs get worse.",
    "tune": "Find the fastest certified way to compute a model here, and remember it.",
    "bench": "Measure how fast models answer here, and against other ways.",
    "models": "List, show and cite models.",
    "doctor": "Look at libraries, GPU and folders; say what to do.",
    "selftest": "Prove that this device answers as it should; one file to send back.",
}


class _LazyGroup(click.Group):
    """Imports a command's module when the command is called, not when the list of commands is printed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"fundus_rt.runtime.commands.{cmd_name}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="fundus-rt")
def cli() -> None:
    """Published fundus-image models, with proof that each answer is the original's. Research use, not a medical device."""


def main() -> None:
    """Entry point: errors of the package become one message on standard error and exit status 2."""
    from fundus_rt.models.errors import FundusRtError, ParityError, StoppedError

    # Every picture's fault has its own row; Pillow's warnings about damaged tags would only stand between the rows.
    warnings.filterwarnings("ignore", module="PIL")
    try:
        cli(prog_name="fundus-rt")
    except OSError as error:
        click.echo(f"Error: {error.strerror or error}; what was written so far is whole, make room and call again", err=True)
        sys.exit(2)
    except FundusRtError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1 if isinstance(error, (StoppedError, ParityError)) else 2)
