"""A library's network with arguments of its own, as RETFound's transformers pool their tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fundus_rt.benchmarks.conversion_case import ConversionCase
from fundus_rt.converters.architecture import identify_architecture
from fundus_rt.converters.checkpoint import read_checkpoint
from fundus_rt.models.errors import UnsupportedCheckpointError, UsageError
from tests import make_checkpoints as make

torch = pytest.importorskip("torch")
make.skip_without_timm()

CARD = ConversionCase("ViT", "", "", ("none",), lambda *_: Path(), 32, 224, columns=5).card(32)
NAME = "timm/vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small transformer that averages its tokens, as a fine-tuning script saves it."""
    import timm

    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5, global_pool="avg")
    path = tmp_path_factory.mktemp("vit") / "checkpoint-best.pth"
    return make.save_torch(path, make.training_container(dict(network.state_dict())))


def test_arguments_make_the_network_that_was_trained(pooled: Path) -> None:
    import timm

    checkpoint = read_checkpoint(pooled)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    found = identify_architecture(checkpoint, CARD, f"{NAME}?global_pool=avg")
    own = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5, global_pool="avg").eval()
    own.load_state_dict(checkpoint.state)
    with torch.inference_mode():
        expected = own(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(found.build().answers(images), expected, atol=1e-5)
    assert "global_pool=avg" in found.description


def test_without_them_it_is_another_network_and_refused(pooled: Path) -> None:
    with pytest.raises(UnsupportedCheckpointError, match=r"norm\.weight"):
        identify_architecture(read_checkpoint(pooled), CARD, NAME)


@pytest.mark.parametrize(
    ("query", "said"), [("?global_pool", "KEY=VALUE"), ("?no_such_argument=1", "no_such_argument"), ("?1=2", "KEY=VALUE")]
)
def test_arguments_that_are_none_are_said(pooled: Path, query: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        identify_architecture(read_checkpoint(pooled), CARD, NAME + query)
