"""The recipe for a Jetson: its user's number, on base images that have an account with that number and on others."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "deploy" / "l4t"


@pytest.mark.skipif(os.name != "posix", reason="runs the recipe's shell line")
@pytest.mark.parametrize(
    ("there", "expected"),
    [("", []), ("ubuntu:x:1234:1234:Ubuntu:/home/ubuntu:/bin/bash", ["userdel ubuntu"])],
)
def test_the_containers_user_has_the_number_that_is_asked_for(tmp_path: Path, there: str, expected: list[str]) -> None:
    """NVIDIA's images on Ubuntu 24.04 come with the account `ubuntu`, number 1000: the next one would be 1001."""
    text = (FOLDER / "Dockerfile").read_text().replace("\\\n", " ")
    (line,) = re.findall(r"^RUN (.*useradd.*)$", text, re.MULTILINE)
    said = tmp_path / "said"
    for name in ("getent", "userdel", "useradd", "mkdir", "chown"):
        answer = f"echo '{there}'; [ -n '{there}' ]" if name == "getent" else f'echo "{name} $*" >> {said}'
        (tmp_path / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    variables = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "USER_NUMBER": "1234"}
    subprocess.run(["sh", "-c", line], env=variables, check=True)
    done = said.read_text().splitlines()
    added = next(words for words in done if words.startswith("useradd"))
    assert "--uid 1234 " in added and added.endswith(" kiosk")
    assert done[: done.index(added)] == expected and done[-2:] == ["mkdir /cache", "chown kiosk /cache"]


def test_the_number_is_said_where_the_image_is_built() -> None:
    (number,) = re.findall(r"^ARG USER_NUMBER=(\d+)$", (FOLDER / "Dockerfile").read_text(), re.MULTILINE)
    readme = (FOLDER / "README.md").read_text()
    assert f"the number {number}," in readme and "--build-arg USER_NUMBER=" in readme
