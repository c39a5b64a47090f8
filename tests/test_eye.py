"""Which eye: whole tokens, every source, no choice between sources that disagree."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fundus_rt.models.errors import EyeError
from fundus_rt.runtime.eye import eye_from_file_name, require_eye, resolve_eye


@pytest.mark.parametrize(
    ("name", "eye"),
    [
        ("Image_01L.jpg", "left"),
        ("Image_14R.jpg", "right"),
        ("RET002OD.jpg", "right"),
        ("RET002OS.jpg", "left"),
        ("10_left.jpeg", "left"),
        ("10_RIGHT.jpeg", "right"),
        ("patient-7-OD.png", "right"),
        ("patient 7 os.png", "left"),
        ("7.os.dcm", "left"),
        ("folder/with/left/scan_OD.tif", "right"),
        ("C:\\left\\scan_OD.tif", "right"),
        ("leftEye.jpg", "left"),
        ("normal_right_eye_600px.jpg", "right"),
        # nothing is said
        ("L\u00f6ffler_12.jpg", None),
        ("Lo\u0308ffler_12.jpg", None),
        ("R\u00f6\u00dfler_07.jpg", None),
        ("Jos\u00e9R.jpg", None),
        ("R\u00e9my 3.png", None),
        ("L\udcf6ffler.jpg", None),
        ("Johnson_R_1957.jpg", None),
        ("scan_L_2.tif", None),
        ("bright.jpg", None),
        ("brightfield_07.jpg", None),
        ("upright.png", None),
        ("cleft.png", None),
        ("Lorem_Rome.jpg", None),
        ("05_dr.JPG", None),
        ("image_r.png", None),
        ("rgb_l.png", None),
        ("IDRiD_111_train.jpg", None),
        ("RODOS.jpg", None),
        ("left/image_07.jpg", None),
        ("20051019_38557_0100_PP.tif", None),
        # OD is the optic disc
        ("IDRiD_01_OD_mask.tif", None),
        ("OD-segmentation-4.png", None),
        ("disc_OD.png", None),
        ("cup_and_od_7.png", None),
        # both
        ("left_and_right.jpg", None),
        ("OD_OS_pair.jpg", None),
        ("12L_OD.jpg", None),
        ("", None),
        (".jpg", None),
    ],
)
def test_file_names(name: str, eye: str | None) -> None:
    assert eye_from_file_name(name) == eye


@given(st.text(alphabet=st.characters(codec="ascii", exclude_characters="/\\"), max_size=24))
def test_letters_around_a_word_silence_it(text: str) -> None:
    assert eye_from_file_name(f"{text}-xrightx.jpg") == eye_from_file_name(f"{text}-.jpg")


def test_sources_that_agree_are_all_named() -> None:
    decision = resolve_eye({"call": None, "dicom": "left", "file name": "left", "acquisition model": None})
    assert (decision.value, decision.source) == ("left", "dicom+file name")


SOURCES = ("call", "list", "dicom", "file name", "acquisition model")


@given(st.dictionaries(st.sampled_from(SOURCES), st.sampled_from(["left", "right", None])))
def test_any_two_sources_that_disagree_are_an_error(sources: dict[str, str | None]) -> None:
    said = {eye for eye in sources.values() if eye}
    if len(said) == 2:
        with pytest.raises(EyeError, match="disagree") as caught:
            resolve_eye(sources)
        assert all(name in str(caught.value) for name, eye in sources.items() if eye)
    else:
        assert resolve_eye(sources).value == (said.pop() if said else None)


def test_a_source_that_says_something_else_is_an_error() -> None:
    with pytest.raises(EyeError, match="expected left or right"):
        resolve_eye({"call": "both"})


def test_no_source_is_not_a_guess() -> None:
    with pytest.raises(EyeError, match=r"--eye left\|right"):
        require_eye(resolve_eye({"call": None}), "joir-age")
