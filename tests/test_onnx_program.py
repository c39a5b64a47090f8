"""``examples/onnx_c``: a C++ program on ONNX Runtime's own headers and library answers as the package does, or refuses.

It is built where a compiler, CMake, the headers of ONNX Runtime and nlohmann's JSON are: in the usual places, or in the folder
that ``FUNDUS_RT_ONNX_HEADERS`` names. The library is the wheel's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from fundus_rt.models.card import CARD_KEY
from fundus_rt.models.registry import VECTOR_FOLDER, bundled_file, load_card
from tests.conftest import REPOSITORY

STORED = sorted(VECTOR_FOLDER.glob("*.frames.bgr"))


def found_header(name: str) -> Path | None:
    """The folder that a header is included from."""
    roots = [
        Path(folder) for folder in (os.environ.get("FUNDUS_RT_ONNX_HEADERS"), "/usr/include", "/usr/local/include") if folder
    ]
    folders = [root / inner for root in roots for inner in ("", "onnxruntime", "onnxruntime/core/session")]
    return next((folder for folder in folders if (folder / name).is_file()), None)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cmake") is None or (shutil.which("c++") is None and shutil.which("g++") is None):
        pytest.skip("there is no C++ compiler or no CMake")
    headers, json_headers = found_header("onnxruntime_cxx_api.h"), found_header("nlohmann/json.hpp")
    if headers is None or json_headers is None:
        missing = "ONNX Runtime's headers" if headers is None else "nlohmann's JSON for C++"
        pytest.skip(f"{missing} are not installed; FUNDUS_RT_ONNX_HEADERS=FOLDER names a folder that has them")
    onnxruntime = pytest.importorskip("onnxruntime")
    libraries = sorted(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so*"))
    if not libraries:
        pytest.skip("this wheel of ONNX Runtime has no library that a C++ program can use")
    build = tmp_path_factory.mktemp("onnx_c")
    library = build / "libonnxruntime.so.1"  # the name that the library has for the dynamic linker
    library.symlink_to(libraries[0])
    words = [f"-DONNXRUNTIME_INCLUDE={headers}", f"-DNLOHMANN_INCLUDE={json_headers}", f"-DONNXRUNTIME_LIBRARY={library}"]
    for call in (["cmake", "-S", REPOSITORY / "examples" / "onnx_c", "-B", build, *words], ["cmake", "--build", build]):
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning" not in done.stdout + done.stderr
    return build / "fundus_onnx"


def run(program: Path, *words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False)


def changed(source: Path, target: Path, change: Any) -> Path:
    """A copy of a model file with another card."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(source))
    (entry,) = [entry for entry in model.metadata_props if entry.key == CARD_KEY]
    card = json.loads(entry.value)
    change(card, model)
    entry.value = json.dumps(card)
    onnx.save(model, str(target))
    return target


@pytest.mark.full
class TestProgram:
    def test_it_answers_the_vectors(self, program: Path) -> None:
        done = run(program, bundled_file(load_card("acquisition")), *STORED)
        assert done.returncode == 0, done.stderr
        about, *answers = map(json.loads, done.stdout.splitlines())
        assert about["model"] == "acquisition" and about["canary"] == "known answers given"
        assert about["input"] == {"height": 224, "width": 224, "order": "BGR", "type": "uint8"}
        vectors = {
            vector["input"].get("file"): vector
            for vector in json.loads((VECTOR_FOLDER / "photographs.json").read_text())["photographs"]
        }
        assert len(answers) == len(STORED) == 3
        for answer in answers:
            vector = vectors[Path(answer["file"]).name]
            assert {name: said["decision"] for name, said in answer["outputs"].items()} == vector["decisions"]
            for name, numbers in vector["outputs"].items():
                assert answer["outputs"][name]["numbers"] == pytest.approx(numbers, abs=1e-4)

    def test_it_means_what_the_package_means(self, program: Path, tiny_age: Path, tiny_sex: Path, tmp_path: Path) -> None:
        from fundus_rt.models.canary import canary_picture
        from fundus_rt.runtime.interpret import interpret
        from fundus_rt.runtime.onnx_session import OnnxRuntimeSession

        picture = canary_picture(1, (64, 64))
        (tmp_path / "drawn.bgr").write_bytes(picture.tobytes())
        for model in (tiny_age, tiny_sex):
            answer = json.loads(run(program, model, tmp_path / "drawn.bgr").stdout.splitlines()[1])
            session = OnnxRuntimeSession(model)
            numbers = session.run(picture[None])
            for name, said in interpret({o.name: numbers[o.name][0] for o in session.card.outputs}, session.card).items():
                found = answer["outputs"][name]
                if said.decision is None:
                    assert found["value"] == pytest.approx(said.value, rel=1e-6) and found["unit"] == said.unit
                else:
                    assert found["decision"] == said.decision
                    assert found["probabilities"] == pytest.approx(said.probabilities, abs=1e-6)

    def test_known_answers_that_are_not_given_stop_it(self, program: Path, tiny_sex: Path, tmp_path: Path) -> None:
        def other(card: Any, model: Any) -> None:
            card["canary"]["answers"]["sex"][0][0] += 1.0

        done = run(program, changed(tiny_sex, tmp_path / "m.onnx", other))
        assert done.returncode == 1 and "sex does not give the known answers" in done.stderr

    def test_a_receipt_of_another_picture_stops_it(self, program: Path, tmp_path: Path) -> None:
        swapped = REPOSITORY / "tests" / "data" / "tiny_swapped.onnx"

        def asked(card: Any, model: Any) -> None:
            card["canary"] = {"drawing": 1, "pictures": [0, 1], "answers": {"sex": [[0.0], [1.0]]}}

        done = run(program, changed(swapped, tmp_path / "m.onnx", asked))
        assert done.returncode == 1 and "the receipt is that of another picture" in done.stderr

    def test_files_that_it_cannot_answer(self, program: Path, tiny_sex: Path, tmp_path: Path) -> None:
        (tmp_path / "short.bgr").write_bytes(bytes(100))
        done = run(program, tiny_sex, tmp_path / "short.bgr")
        assert done.returncode == 2 and "got 100 bytes, expected 12288" in done.stderr
        assert run(program, tiny_sex, tmp_path / "none.bgr").returncode == 2
        assert run(program).returncode == 2

        def other_size(card: Any, model: Any) -> None:
            card["preprocessing"]["input_size"] = [96, 96]

        done = run(program, changed(tiny_sex, tmp_path / "m.onnx", other_size))
        assert done.returncode == 1 and "its card says [-1, 96, 96, 3]" in done.stderr

        def without(card: Any, model: Any) -> None:
            del model.metadata_props[:]
            model.metadata_props.add(key="x", value="y")

        onnx = pytest.importorskip("onnx")
        model = onnx.load(str(tiny_sex))
        without({}, model)
        onnx.save(model, str(tmp_path / "bare.onnx"))
        done = run(program, tmp_path / "bare.onnx")
        assert done.returncode == 1 and "carries no model card" in done.stderr


def test_the_sources_name_what_the_package_names() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((REPOSITORY / "examples" / "onnx_c").glob("*.cpp")))
    assert all(word in text for word in (CARD_KEY, '"frames"', '"receipt"', "0.1 * apart", "0.002 * largest"))
