"""Which pictures a call names."""

from __future__ import annotations

from pathlib import Path

import pytest

from fundus_rt.models.errors import UsageError
from fundus_rt.runtime.inputs import Item, items_from_list, items_from_paths


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_a_folder_gives_its_pictures_in_order_with_subfolders(tmp_path: Path) -> None:
    touch(tmp_path, "b.JPG", "a.png", "notes.txt", ".hidden.jpg", "sub/c.tif", ".git/d.jpg")
    found = [Path(item.path).relative_to(tmp_path).as_posix() for item in items_from_paths([str(tmp_path)])]
    assert found == ["a.png", "b.JPG", "sub/c.tif"]


def test_dicom_without_an_ending_is_found_by_its_magic(tmp_path: Path) -> None:
    (tmp_path / "IM0001").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "README").write_bytes(b"\0" * 200)
    assert [item.path for item in items_from_paths([str(tmp_path)])] == [str(tmp_path / "IM0001")]


def test_globs_and_named_files(tmp_path: Path) -> None:
    touch(tmp_path, "x1.jpg", "x2.jpg", "y.jpg", "photo.weird")
    found = list(items_from_paths([str(tmp_path / "x*.jpg"), str(tmp_path / "photo.weird")]))
    assert [Path(item.path).name for item in found] == ["x1.jpg", "x2.jpg", "photo.weird"]
    assert not any(item.problem for item in found)


@pytest.mark.parametrize("name", ["nothing.jpg", "*.png", "empty"])
def test_a_path_without_pictures_is_one_item_that_says_so(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (item,) = items_from_paths([str(tmp_path / name)])
    assert item.problem


def test_a_list_gives_files_and_eyes(tmp_path: Path) -> None:
    listing = tmp_path / "list.csv"
    listing.write_text("\ufefffile,eye\na.jpg,OD\nb.jpg,left\nc.jpg,\n", encoding="utf-8")
    assert list(items_from_list(str(listing))) == [
        Item(str(tmp_path / "a.jpg"), "right"),
        Item(str(tmp_path / "b.jpg"), "left"),
        Item(str(tmp_path / "c.jpg"), None),
    ]


def test_a_list_without_file_names_is_a_wrong_call(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,eye\na.jpg,left\n")
    with pytest.raises(UsageError, match="one named file"):
        list(items_from_list(str(tmp_path / "list.csv")))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"file,eye\na.jpg,both\nb.jpg,OD\n", "line 2 of the list says the eye is 'both'"),
        (b"eye,file\nleft\nright,b.jpg\n", "names no file"),
        (b"file,eye\n,left\nb.jpg,OD\n", "names no file"),
    ],
)
def test_a_wrong_line_is_that_pictures_alone(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "list.csv").write_bytes(content)
    wrong, right = items_from_list(str(tmp_path / "list.csv"))
    assert problem in wrong.problem
    assert (right.path, right.listed_eye, right.problem) == (str(tmp_path / "b.jpg"), "right", "")


def test_a_list_in_another_encoding_still_finds_its_files(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"file,eye\nM\xfcller.jpg,OD\n")
    (item,) = items_from_list(str(tmp_path / "list.csv"))
    assert Path(item.path).name.encode("utf-8", "surrogateescape") == b"M\xfcller.jpg"


def test_an_empty_list_says_so(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("file,eye\n")
    (item,) = items_from_list(str(tmp_path / "list.csv"))
    assert "names no picture" in item.problem


def test_a_missing_list_is_a_wrong_call(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        list(items_from_list(str(tmp_path / "none.csv")))
