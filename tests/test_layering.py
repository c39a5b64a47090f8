"""Who may import whom, read from the source; and what an import of the runtime pulls in."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, environment

ROOMS = ("models", "converters", "runtime", "benchmarks")
MAY_IMPORT = {
    "models": {"models"},
    "converters": {"models", "converters"},
    "runtime": {"models", "runtime"},
    "benchmarks": set(ROOMS),
}
OUTSIDE = {
    "models": {"numpy"},
    "converters": {"numpy"},
    "runtime": {"numpy", "cv2", "PIL", "click"},
}
INSIDE_FUNCTIONS = {
    "models": {"filelock", "cryptography"},
    "converters": {"tensorrt", "onnx", "onnxruntime", "torch", "timm", "torchvision", "transformers", "safetensors", "cv2", "PIL"}
    | {"tensorflow", "tf_keras", "keras", "tf2onnx", "h5py"},
    "runtime": {"onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda", "filelock", "rich", "pydicom", "cryptography"},
}
HEAVY = {"torch", "tensorflow", "tf_keras", "keras", "onnx", "timm", "tf2onnx", "torchvision", "h5py", "transformers"}


def sources(room: str) -> list[Path]:
    """The room's modules; training scripts are no part of the package and import what training needs."""
    return [path for path in sorted((REPOSITORY / room).rglob("*.py")) if "training" not in path.parts]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Imported module names, and whether they are imported inside a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))

    def visit(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                yield child.module or "", inside
            else:
                deeper = inside or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
                yield from visit(child, deeper)

    yield from visit(tree, False)


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_the_table_allows(room: str) -> None:
    wrong = []
    for path in sources(room):
        for name, inside in imports(path):
            parts = name.split(".")
            if parts[0] == "fundus_rt":
                anything = "commands" in path.parts and inside
                if parts[1] not in MAY_IMPORT[room] and not anything:
                    wrong.append(f"{path.relative_to(REPOSITORY)} imports {name}")
            elif room in OUTSIDE and parts[0] not in sys.stdlib_module_names:
                allowed = OUTSIDE[room] | (INSIDE_FUNCTIONS[room] if inside else set())
                if parts[0] not in allowed:
                    wrong.append(f"{path.relative_to(REPOSITORY)} imports {name}{' in a function' if inside else ''}")
    assert not wrong, "\n".join(wrong)
    assert sources(room)


def test_click_stays_in_the_command_line() -> None:
    wrong = [
        path.name
        for path in sources("runtime")
        if any(name == "click" for name, _ in imports(path)) and path.name != "cli.py" and "commands" not in path.parts
    ]
    assert not wrong


def loaded_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment(), check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import fundus_rt.runtime",
        "from fundus_rt.runtime import Pipeline",
        "from fundus_rt.runtime import Pipeline; import numpy as np; p = Pipeline()",
        "import fundus_rt.runtime.batch, fundus_rt.runtime.rows, fundus_rt.runtime.inputs, fundus_rt.runtime.cli",
        "import fundus_rt.models",
    ],
)
def test_the_device_path_loads_no_framework(code: str) -> None:
    loaded = loaded_after(code)
    assert "fundus_rt" in loaded
    assert not loaded & HEAVY


def test_help_needs_neither_numpy_nor_opencv() -> None:
    code = "import fundus_rt.runtime.cli as c\ntry:\n c.cli(['--help'])\nexcept SystemExit:\n pass"
    assert not loaded_after(code) & {"numpy", "cv2", "PIL", "onnxruntime", "rich", "pydicom"}


def test_no_file_is_over_400_lines() -> None:
    long = {
        str(path.relative_to(REPOSITORY)): count
        for room in (*ROOMS, "tests")
        for path in (REPOSITORY / room).rglob("*.py")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long
