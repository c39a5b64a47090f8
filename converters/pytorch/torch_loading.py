"""A file's tensors into a torch network, every one of them or none, and what the network then answers with."""

from __future__ import annotations

import re
from typing import Any

from fundus_rt.converters.architecture import LoadAccount, account_for
from fundus_rt.converters.backends import require
from fundus_rt.converters.checkpoint import Checkpoint, numbers_in
from fundus_rt.converters.pytorch.torch_names import plain_names
from fundus_rt.models.errors import UnsupportedCheckpointError

COUNTER = "num_batches_tracked"
"""Counter of BatchNorm from torch 0.4.1 on; it is read in training only."""
DENSE_LAYER = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
"""Names of torchvision's DenseNets of 2017, ``denselayer1.norm.1.weight``; later ones have ``denselayer1.norm1.weight``."""
AUXILIARY = {"InceptionV3": ("AuxLogits.",), "Inception3": ("AuxLogits.",), "GoogLeNet": ("aux1.", "aux2.")}
"""Parts of a network that answer in training only, by the class of the network."""


def names_in(module: Any, shapes: dict[str, tuple[int, ...]]) -> dict[str, str]:
    """Name in a module of each tensor of a file, prefixes of wrappers taken off on both sides.

    Args:
        module: a `torch.nn.Module`.
        shapes: the file's tensors, whose common prefix was taken off already.

    Returns:
        For each tensor of the file its name in the module; a tensor that has none keeps its own name. Layers of a DenseNet may
        have the names of torchvision before 0.4, ``norm.1``, as in its published weights, which it renames itself.
    """
    own = {plain: name for name, plain in plain_names(module.state_dict())[0].items()}
    return {name: own.get(name) or own.get(DENSE_LAYER.sub(r"\1\2", name), name) for name in shapes}


def account_of_module(
    checkpoint: Checkpoint, module: Any, names: dict[str, str], notes: list[str], unused: dict[str, str] | None = None
) -> LoadAccount:
    """Hold a file against a module, whole; BatchNorm's counters, which no answer depends on, may be missing or extra.

    Args:
        checkpoint: the file.
        module: a `torch.nn.Module`, its weights not yet the file's.
        names: as `names_in` gives them.
        notes: gets a sentence for what was taken as it is in the module, or left aside.
        unused: tensors of the file that are known not to be used, with the reason.

    Raises:
        UnsupportedCheckpointError: tensors missing, left over or of another shape; a part of a quantized network; NaN.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    given = set(names.values())
    absent = [name for name in expected if name.endswith(COUNTER) and name not in given]
    for name in absent:
        del expected[name]
    if absent:
        notes.append(f"{len(absent)} counters {COUNTER} are not in the file (torch before 0.4.1); no answer depends on them")
    unused = dict(unused or {})
    computed = {name: buffer for name, buffer in module.named_buffers() if name not in module.state_dict()}
    for name in names:
        if names[name] in computed and _is_same(checkpoint, name, computed[names[name]]):
            unused[name] = "numbers that the network computes by itself, the same"
        elif name.endswith(COUNTER) and names[name] not in expected:
            unused[name] = f"{COUNTER}, which no answer depends on"
        elif name.startswith(AUXILIARY.get(type(module).__name__, ("\0",))):
            unused[name] = "auxiliary classifier, which answers in training only"
    account = account_for(checkpoint, {k: v for k, v in names.items() if k not in unused}, expected, unused)
    own = module.state_dict()
    check_numbers(checkpoint, [name for name in names if name not in unused and own[names[name]].is_floating_point()])
    return account


def _is_same(checkpoint: Checkpoint, name: str, buffer: Any) -> bool:
    """Whether a tensor of the file is what a network keeps without saving it (a table of positions, for example)."""
    tensor = checkpoint.state.get(name)
    return tensor is not None and tensor.shape == buffer.shape and bool((tensor == buffer).all())


def check_numbers(checkpoint: Checkpoint, names: list[str]) -> None:
    """See that tensors which a network computes with are finite floating-point numbers.

    Args:
        checkpoint: the file; one that is known by its shapes alone passes.
        names: those of its tensors whose place in the network is of a floating-point type.

    Raises:
        UnsupportedCheckpointError: whole numbers, of a part of a quantized network; NaN or infinity.
    """
    torch = require("torch")
    tensors = {name: checkpoint.state[name] for name in names if name in checkpoint.state}
    kinds = {name: str(one.dtype).removeprefix("torch.") for name, one in tensors.items() if not one.is_floating_point()}
    if kinds:
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name}: {len(kinds)} weights are whole numbers, so the network was quantized: "
            f"{', '.join(f'{name} ({kind})' for name, kind in list(kinds.items())[:4])}. Ask for the float network."
        )
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise UnsupportedCheckpointError(
                f"{checkpoint.path.name}: {name} {list(tensor.shape)} holds NaN or infinity; the training diverged or the "
                f"file is damaged. Ask for the file that was evaluated."
            )


def account_of_itself(module: Any) -> LoadAccount:
    """The account of a whole pickled module, which brings its own tensors."""
    shapes = [tuple(tensor.shape) for tensor in module.state_dict().values()]
    numbers = sum(numbers_in(shape) for shape in shapes)
    return LoadAccount(len(shapes), numbers, len(shapes), numbers, numbers)


def load_exactly(checkpoint: Checkpoint, module: Any, names: dict[str, str], account: LoadAccount) -> Any:
    """Load the file's tensors into a module, and see that they are in it, number by number.

    Args:
        checkpoint: the file.
        module: a `torch.nn.Module`.
        names: name in the module of each tensor of the file.
        account: as `account_of_module` gives it.

    Returns:
        The module, float32, in evaluation mode.

    Raises:
        UnsupportedCheckpointError: a tensor that the module changed while loading.
    """
    torch = require("torch")
    state = {names[name]: checkpoint.state[name] for name in names if name not in account.unused}
    module = module.float()
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UnsupportedCheckpointError(f"{checkpoint.path.name} cannot be loaded: {' '.join(str(error).split())}") from error
    own = module.state_dict()
    changed = [name for name, tensor in state.items() if name in own and not torch.equal(own[name], tensor.to(own[name].dtype))]
    wrong = [name for name in missing if not name.endswith(COUNTER)] + list(unexpected) + changed
    if wrong:
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name}: {len(wrong)} tensors are not in the network as the file has them: {', '.join(wrong[:6])}"
        )
    return module.eval()


def columns_of(checkpoint: Checkpoint, module: Any, input_size: tuple[int, int], network: str) -> int:
    """How many numbers per picture a module answers with, tried on two pictures, of zeros and of noise, and on one alone.

    Args:
        checkpoint: the file, for messages.
        module: a `torch.nn.Module`; its weights need not be the file's.
        input_size: height and width, pixels.
        network: what to call it in a message.

    Raises:
        UnsupportedCheckpointError: it does not run on such pictures, answers with anything but one tensor of numbers
            [N, columns], or answers the same picture differently, by itself or beside another.
    """
    torch = require("torch")
    module = module.float().eval()
    pictures = torch.zeros(2, 3, *input_size)
    pictures[1] = torch.randn(3, *input_size, generator=torch.Generator().manual_seed(0))
    answer = _row_per_picture(torch, checkpoint, module, pictures, network)
    again = _row_per_picture(torch, checkpoint, module, pictures, network)
    alone = _row_per_picture(torch, checkpoint, module, pictures[1:], network)
    if not torch.equal(torch.nan_to_num(answer), torch.nan_to_num(again)):
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name}: {network} answers the same picture differently each time: it draws random numbers in "
            f"evaluation too (dropout called as a function, for example), so nothing can be proved"
        )
    if not torch.allclose(torch.nan_to_num(answer[1:]), torch.nan_to_num(alone), rtol=1e-2, atol=1e-4):
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name}: {network} answers a picture differently when another one is beside it (a mean or a "
            f"normalisation over the pictures of a batch, in evaluation too), so it has no answer for one picture. Ask for the "
            f"network with fixed statistics."
        )
    return int(answer.shape[1])


def _row_per_picture(torch: Any, checkpoint: Checkpoint, module: Any, pictures: Any, network: str) -> Any:
    """A module's answer [N, columns] to pictures [N, 3, H, W].

    Raises:
        UnsupportedCheckpointError: it does not run on them, or answers with something else.
    """
    try:
        with torch.inference_mode():
            answer = module(pictures)
    except Exception as error:  # whatever the network's own code raises
        text = " ".join(str(error).split())[:240]
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name}: {network} does not run on pictures {list(pictures.shape)} ({type(error).__name__}: {text}"
            f"). Check the card's preprocessing.input_size; a pickled module may need the versions that it was saved with."
        ) from error
    problem = _problem_of_answer(torch, answer, len(pictures))
    if problem:
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name}: {network} answers pictures {list(pictures.shape)} with {problem}"
        )
    return answer


def _problem_of_answer(torch: Any, answer: Any, rows: int) -> str:
    """What is wrong with an answer to so many pictures, and what to do; empty when it is [rows, columns]."""
    wrap = "Write a function that wraps the network so that it answers [N, columns], and name it with --architecture"
    if isinstance(answer, dict):
        return f"a {type(answer).__name__} of {', '.join(map(str, list(answer)[:6]))}; expected one tensor [N, columns]. {wrap}."
    if isinstance(answer, (tuple, list)):
        parts = ", ".join(str(list(p.shape)) if isinstance(p, torch.Tensor) else type(p).__name__ for p in answer[:6])
        return f"a {type(answer).__name__} of {len(answer)} ({parts}); expected one tensor [N, columns]. {wrap}."
    if not isinstance(answer, torch.Tensor):
        return f"an object of the class {type(answer).__name__}; expected one tensor [N, columns]. {wrap}."
    shape = list(answer.shape)
    if answer.ndim == 4:
        return (
            f"a map {shape}, four dimensions; expected [N, columns]. Either its pooling was left out when the head was "
            f"replaced, or it is a segmentation network, which answers for every pixel and is not supported"
        )
    if answer.ndim < 2 and rows == 1:
        return (
            f"a tensor {shape}, though two pictures are answered with two dimensions: it takes off every dimension of length 1 "
            f"(.squeeze() without a number), so one picture alone has no row. {wrap}."
        )
    if answer.ndim != 2 or shape[0] != rows:
        return f"a tensor {shape}; expected two dimensions, [N, columns], one row for each picture. {wrap}."
    if not answer.is_floating_point():
        return f"whole numbers ({str(answer.dtype).removeprefix('torch.')}): a class is chosen inside. {wrap}."
    return ""
