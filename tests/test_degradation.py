"""Tests of the synthetic degradations on a drawn field of view; no photograph is needed."""

import numpy as np
import pytest

from fundus_rt.benchmarks import degradation


def drawn_frame(size):
    """Return (frame float32 [size, size, 3] RGB in 0..1, mask float32 [size, size]): a textured disc."""
    y, x = (np.mgrid[0:size, 0:size].astype(np.float32) + 0.5) / size
    mask = (np.hypot(x - 0.5, y - 0.5) < 0.48).astype(np.float32)
    texture = 0.5 + 0.15 * np.sign(np.sin(40 * np.pi * x) * np.sin(40 * np.pi * y))
    frame = texture[..., None] * np.array([1.0, 0.6, 0.35], np.float32) * mask[..., None]
    return frame.astype(np.float32), mask


@pytest.mark.parametrize("kinds", degradation.COMBINATIONS)
def test_result_is_a_frame_in_range_and_black_outside(kinds):
    frame, mask = drawn_frame(192)
    result = degradation.degrade(frame, mask, kinds, np.random.default_rng(3))
    assert result.shape == frame.shape
    assert result.dtype == np.float32
    assert result.min() >= 0.0
    assert result.max() <= 1.0
    assert not result[mask == 0].any()
    assert np.abs(result - frame).max() > 0.02


@pytest.mark.parametrize("kinds", degradation.COMBINATIONS)
def test_severity_zero_leaves_the_frame(kinds):
    frame, mask = drawn_frame(192)
    result = degradation.degrade(frame, mask, kinds, np.random.default_rng(3), severity=0.0)
    np.testing.assert_allclose(result, frame, atol=1e-6)


def test_input_is_not_written_to():
    frame, mask = drawn_frame(96)
    before = frame.copy()
    degradation.degrade(frame, mask, degradation.KINDS, np.random.default_rng(0))
    np.testing.assert_array_equal(frame, before)


def test_combinations_are_the_seven_mixtures():
    assert len(set(degradation.COMBINATIONS)) == 7
    assert all(set(kinds) <= set(degradation.KINDS) for kinds in degradation.COMBINATIONS)


def test_same_rng_gives_the_same_degradation_at_every_size():
    means = []
    for size in (128, 512, 1024):
        frame, mask = drawn_frame(size)
        result = degradation.degrade(frame, mask, ("illumination",), np.random.default_rng(11))
        means.append(result.mean(axis=(0, 1)))
    np.testing.assert_allclose(means[0], means[1], atol=0.01)
    np.testing.assert_allclose(means[2], means[1], atol=0.01)


def test_blur_lowers_contrast_and_keeps_the_mean():
    frame, mask = drawn_frame(512)
    inside = np.s_[128:384, 128:384]
    stronger = 0
    for seed in range(8):
        result = degradation.blur(frame, mask, np.random.default_rng(seed))
        assert abs(result[inside].mean() - frame[inside].mean()) < 0.01
        stronger += result[inside].std() < 0.97 * frame[inside].std()
    assert stronger >= 5


def test_spots_only_brighten():
    frame, mask = drawn_frame(512)
    for seed in range(4):
        change = degradation.spots(frame, mask, np.random.default_rng(seed)) - frame
        assert change.min() > -1e-6
        assert 0.0 < (change[mask > 0] > 0.01).mean() < 0.1


def test_dark_frames_get_no_hole():
    frame, mask = drawn_frame(128)
    dark = frame * (0.2 / frame[mask > 0].mean())
    assert not degradation._hole(dark, mask, np.random.default_rng(0)).any()
    assert degradation._hole(frame * 1.2, mask, np.random.default_rng(0)).min() < -0.05


def test_mistakes_are_named():
    frame, mask = drawn_frame(64)
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="unknown degradation"):
        degradation.degrade(frame, mask, ("fog",), rng)
    with pytest.raises(ValueError, match="mask of shape"):
        degradation.degrade(frame, mask[:10], ("blur",), rng)
    with pytest.raises(ValueError, match="height, width, 3"):
        degradation.degrade(frame[..., 0], mask, ("blur",), rng)
