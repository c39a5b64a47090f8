"""The command ``fundus-rt``. Nothing heavy is imported before a command needs it, so ``--help`` answers at once."""

from __future__ import annotations

import errno
import importlib
import sys
import warnings

import click

_FOR_NOW = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
"""Of a disk: what may be otherwise at the next call."""
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
    """Entry point: errors of the package become one message on standard error and an exit status other than 0.

    2 where the call itself is wrong; 3 where what computes cannot be trusted or is gone, or memory or disk are not enough, which
    whoever watches a device has to tell from the 1 of a photograph that cannot be answered.
    """
    from fundus_rt.models.errors import CameraError, FundusRtError, ParityError, StoppedError
    from fundus_rt.models.memory import is_out_of_memory
    from fundus_rt.runtime.opencv import require_opencv

    # Every picture's fault has its own row; Pillow's warnings about damaged tags would only stand between the rows.
    warnings.filterwarnings("ignore", module="PIL")
    try:
        cli(prog_name="fundus-rt")
    except OSError as error:
        click.echo(f"Error: {error.strerror or error}; what was written so far is whole, make room and call again", err=True)
        sys.exit(3 if error.errno in _FOR_NOW else 2)
    except ImportError:
        try:
            require_opencv()
        except FundusRtError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(2)
        raise
    except FundusRtError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(3 if isinstance(error, StoppedError) else 1 if isinstance(error, (ParityError, CameraError)) else 2)
    except Exception as error:  # each library has a class of its own for it
        if not is_out_of_memory(error):
            raise
        click.echo("Error: the memory is not enough; what was written so far is whole, allow more and call again", err=True)
        sys.exit(3)
