"""Networks that the caller names: timm's, torchvision's, an own factory; and whole pickled modules, which name themselves."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

from fundus_rt.converters.architecture import Architecture, Network
from fundus_rt.converters.backends import require, require_timm, require_torchvision
from fundus_rt.converters.checkpoint import Checkpoint
from fundus_rt.converters.pytorch.own_factories import close_names, module_of_factory, options_in
from fundus_rt.converters.pytorch.stated import refuse_contradiction, stated_title
from fundus_rt.converters.pytorch.swin_config import OPTIONS_OF_V2
from fundus_rt.converters.pytorch.torch_export import EXPORTER, TorchNetwork
from fundus_rt.converters.pytorch.torch_loading import account_of_itself, account_of_module, columns_of, load_exactly, names_in
from fundus_rt.converters.statements import same_normalisation
from fundus_rt.models.card import ModelCard
from fundus_rt.models.errors import UnsupportedCheckpointError, UsageError

LIBRARIES = ("timm", "torchvision")
INCEPTION = (
    "torchvision's Inception-v3 and GoogLeNet, made with pretrained weights, normalise their input a second time inside "
    "(transform_input), which no tensor shows; that the network takes its input as the card prepares it is taken for granted. If "
    "it was made so, name it with ?transform_input=true."
)


def identify_named(checkpoint: Checkpoint, card: ModelCard, named: str) -> Architecture:
    """Load a file's tensors into the network that the caller, or the card, says it is.

    Args:
        checkpoint: the file.
        card: gives the input size.
        named: ``timm/NAME`` or ``torchvision/NAME``, with arguments where the network was made with some
            (``timm/vit_large_patch16_224?global_pool=avg``); or ``package.module:factory``: a callable without arguments that
            returns a `torch.nn.Module`; its module is imported with the current folder on the path.

    Raises:
        UsageError: no such name; the factory cannot be imported or called, or makes no network.
        UnsupportedCheckpointError: the tensors are not that network's, to the last one; its answer is no [N, columns]; the file
            says that it is another one.
    """
    library, slash, name = named.partition("/")
    if slash and library in LIBRARIES:
        refuse_contradiction(checkpoint, named)
        return answered_by_module(checkpoint, _identify_in_library(checkpoint, card, library, name))
    if named.count(":") == 1 and not named.startswith(":") and not named.endswith(":"):
        module = module_of_factory(named)
        found = _identified(checkpoint, card, named, module, f"the network of {named}", ("torch",), [], [])
        return answered_by_module(checkpoint, found)
    raise UsageError(
        f"--architecture {named!r} is not understood; expected timm/NAME (for example timm/convnext_tiny), torchvision/NAME, "
        f"or package.module:factory, a function without arguments that returns the network"
    )


def identify_module(checkpoint: Checkpoint, card: ModelCard) -> Architecture:
    """A whole pickled module: it answers itself, and its own graph is exported.

    Its family is its class, ``package.module:Class``, for cards that accept it.

    Raises:
        UnsupportedCheckpointError: it does not run, or its answer is no [N, columns].
    """
    module, size = checkpoint.module, card.preprocessing.input_size
    kind = f"{type(module).__module__}:{type(module).__qualname__}"
    columns = columns_of(checkpoint, module, size, f"the pickled module {kind}")
    description = f"a whole pickled module of the class {kind}, {_words(columns, size)}"
    packages = tuple(dict.fromkeys(("torch", kind.partition(".")[0])))

    def build() -> Network:
        return TorchNetwork(module, size)

    return Architecture(kind, description, size, columns, None, account_of_itself(module), build, EXPORTER, packages)


def answered_by_module(checkpoint: Checkpoint, found: Architecture) -> Architecture:
    """An architecture known from its tensors, whose reference answers a whole pickled module gives where the file holds one.

    So a forward pass that its author changed shows as a difference, and nothing is written.

    Raises:
        UnsupportedCheckpointError: the module does not run, or does not answer with [N, columns].
    """
    module = checkpoint.module
    if module is None:
        return found
    columns_of(checkpoint, module, found.input_size, "the pickled module")

    def build() -> Network:
        rebuilt: Any = found.build()
        rebuilt.original = module.float().eval()
        return rebuilt  # type: ignore[no-any-return]

    note = "the pickled module itself gives the answers that the converted network is held against"
    return replace(found, build=build, notes=(*found.notes, note))


def _identify_in_library(checkpoint: Checkpoint, card: ModelCard, library: str, name: str) -> Architecture:
    """An architecture of timm or torchvision, with as many outputs as the file's head has."""
    size, file = card.preprocessing.input_size, checkpoint.path.name
    title = f"{library}/{name}"
    name, options = options_in(name)
    create = _timm_network if library == "timm" else _torchvision_network
    outputs, head = _outputs_in_file(checkpoint, create(name, None, size, options), title)
    module = create(name, outputs, size, options)
    _check_grid(checkpoint, module, title, size)
    notes: list[str] = []
    warnings = _warnings_of(module, library, name, card, stated_title(checkpoint)[0])
    names = names_in(module, checkpoint.shapes)
    if type(module).__name__ in ("SwinTransformer", "SwinTransformerV2"):
        return _identify_swin_by_name(checkpoint, card, title, module, warnings, options)
    if library == "timm" and set(names.values()) != set(module.state_dict()):
        renamed = _renamed_by_timm(checkpoint, module)
        if renamed is not None:
            notes.append(f"names brought to those of {title} by timm's own rules; not one number was changed")
            checkpoint = replace(checkpoint, state=renamed, shapes={k: tuple(v.shape) for k, v in renamed.items()})
            names = names_in(module, checkpoint.shapes)
    packages = ("torch", "torchvision", "timm") if library == "timm" else ("torch", "torchvision")
    try:
        return _identified(checkpoint, card, title, module, title, packages, notes, warnings, names)
    except UnsupportedCheckpointError as error:
        if "fc_norm.weight" in checkpoint.shapes and "norm.weight" in module.state_dict() and "norm.weight" not in names:
            raise UnsupportedCheckpointError(
                f"{error}\nA transformer with fc_norm and without norm averages its tokens: --architecture {library}/{name}"
                f"?global_pool=avg"
            ) from error
        if head in checkpoint.shapes or "does not fit" not in str(error):
            raise
        raise UnsupportedCheckpointError(f"{error}\n{file} has no tensor {head}: its head was replaced or taken off.") from error


def _identified(
    checkpoint: Checkpoint,
    card: ModelCard,
    family: str,
    module: Any,
    title: str,
    packages: tuple[str, ...],
    notes: list[str],
    warnings: list[str],
    names: dict[str, str] | None = None,
) -> Architecture:
    """The architecture of a module that all of the file's tensors fit."""
    size = card.preprocessing.input_size
    known = names_in(module, checkpoint.shapes) if names is None else names
    account = account_of_module(checkpoint, module, known, notes)
    columns = columns_of(checkpoint, module, size, title)

    def build() -> Network:
        return TorchNetwork(load_exactly(checkpoint, module, known, account), size)

    return Architecture(
        family, f"{title}, {_words(columns, size)}", size, columns, None, account, build, EXPORTER, packages,
        tuple(notes), tuple(warnings),
    )  # fmt: skip


def _words(columns: int, size: tuple[int, int]) -> str:
    return f"{columns} output{'s' if columns > 1 else ''}, {size[0]} x {size[1]} pixels"


def _timm_network(name: str, outputs: int | None, size: tuple[int, int], options: dict[str, Any]) -> Any:
    """An architecture of timm with random weights; nothing is downloaded. None: as many outputs as it is published with.

    Raises:
        UsageError: timm has no such architecture.
    """
    timm = require_timm()
    if not timm.is_model(name):
        known = timm.list_models()
        raise UsageError(f"timm {timm.__version__} has no architecture {name!r}{close_names(name, known)}")
    wanted = options | ({} if outputs is None else {"num_classes": outputs})
    try:
        try:
            return timm.create_model(name, pretrained=False, img_size=size, **wanted)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            return timm.create_model(name, pretrained=False, **wanted)
    except Exception as error:  # each architecture checks its arguments in its own way
        text = " ".join(str(error).split())[:240]
        raise UsageError(
            f"timm cannot make {name!r} for {size[0]} x {size[1]} pixels ({type(error).__name__}: {text}); check "
            f"the name and the card's preprocessing.input_size"
        ) from error


def _torchvision_network(name: str, outputs: int | None, size: tuple[int, int], options: dict[str, Any]) -> Any:
    """A classification network of torchvision with random weights, without auxiliary classifiers.

    Raises:
        UsageError: torchvision has no such architecture.
    """
    models = require_torchvision().models
    known = models.list_models(module=models)
    if name not in known:
        raise UsageError(f"torchvision has no classification network {name!r}{close_names(name, known)}")
    wanted = options | ({} if outputs is None else {"num_classes": outputs})
    if name in ("inception_v3", "googlenet"):
        wanted = {"aux_logits": False, "init_weights": False} | wanted
    try:
        return models.get_model(name, weights=None, **wanted)
    except (TypeError, ValueError) as error:
        raise UsageError(f"torchvision cannot make {name!r} with {options} ({error}); check the arguments") from error


def _outputs_in_file(checkpoint: Checkpoint, module: Any, title: str) -> tuple[int, str]:
    """Outputs of the file's last linear layer, and the name of its weight.

    Raises:
        UnsupportedCheckpointError: the file has no such tensor; what it has instead is named.
    """
    nn = require("torch").nn
    config = getattr(module, "pretrained_cfg", None) or {}
    found = config.get("classifier")
    heads = list(found) if isinstance(found, (tuple, list)) else [found] if found else []
    if not heads:
        heads = [name for name, part in module.named_modules() if isinstance(part, (nn.Linear, nn.Conv2d))][-1:]
    short = {name.rpartition(".")[2] for name in heads}
    for head in dict.fromkeys([*heads, *(f"{h.partition('.')[0]}" for h in heads), "head.fc", "head", "fc", "classifier"]):
        shape = checkpoint.shapes.get(f"{head}.weight", ())
        if len(shape) in (2, 4):
            return shape[0], f"{heads[0]}.weight"
    similar = [name for name in checkpoint.shapes if any(f".{name}".find(f".{word}.") >= 0 for word in (*short, "head", "fc"))]
    shown = ", ".join(f"{name} {list(checkpoint.shapes[name])}" for name in similar[-6:])
    found = f"it has {shown}, so the head was replaced" if shown else "so it holds features without a head, or another network"
    raise UnsupportedCheckpointError(
        f"{checkpoint.path.name} has no tensor {heads[0]}.weight, the last layer of {title}; {found}. What lies between the "
        f"layers of a head is not in the tensors: write the network as a function without arguments and name it with "
        f"--architecture package.module:factory."
    )


def _check_grid(checkpoint: Checkpoint, module: Any, title: str, size: tuple[int, int]) -> None:
    """Positions learnt for another input size are refused with the size that they were learnt for."""
    own, given = getattr(module, "pos_embed", None), checkpoint.shapes.get("pos_embed", ())
    patch = getattr(getattr(module, "patch_embed", None), "patch_size", None)
    if own is None or len(given) != 3 or tuple(own.shape) == given or own.ndim != 3 or patch is None:
        return
    cells = math.prod(getattr(module.patch_embed, "grid_size", (0, 0)))
    extra = own.shape[1] - cells
    side = math.isqrt(max(0, given[1] - extra))
    if side * side == given[1] - extra and given[2] == own.shape[2]:
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name} was trained as {title} at {side * patch[0]} x {side * patch[1]} pixels ({given[1]} "
            f"positions), but the card prepares {size[0]} x {size[1]}. Use a card with preprocessing.input_size "
            f"[{side * patch[0]}, {side * patch[1]}]."
        )


def _renamed_by_timm(checkpoint: Checkpoint, module: Any) -> dict[str, Any] | None:
    """The state under timm's names by timm's own filter; None where that would lose, add or change a single number."""
    torch = require("torch")
    rules = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if rules is None:
        return None
    try:
        renamed = dict(rules(dict(checkpoint.state), module))
    except Exception:  # the rules are written for timm's own files: on others they may stop anywhere
        return None
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    if {name: tuple(tensor.shape) for name, tensor in renamed.items()} != own:
        return None
    same = _fingerprint(torch, checkpoint.state.values()) == _fingerprint(torch, renamed.values())
    return renamed if same else None


def _fingerprint(torch: Any, tensors: Any) -> tuple[int, int]:
    """A sum over all numbers that does not depend on their order, and how many there are: equal for the same numbers only.

    Each number's bits are mixed by multiplications modulo 2^64 before they are added.
    """
    total = count = 0
    for tensor in tensors:
        bits = tensor.detach().double().reshape(-1).view(torch.int64)
        mixed = (bits ^ (bits >> 31)) * 0x2545F4914F6CDD1D
        mixed = (mixed ^ (mixed >> 29)) * 0x369DEA0F31A53F85
        total = (total + int(mixed.sum())) % 2**64
        count += tensor.numel()
    return total, count


def _identify_swin_by_name(
    checkpoint: Checkpoint, card: ModelCard, title: str, module: Any, warnings: list[str], options: dict[str, Any]
) -> Architecture:
    """A Swin Transformer that was named: read from its tensors in whichever layout, and held against the name.

    Raises:
        UsageError: an argument that is not read, because the tensors tell it or the network is rebuilt without it.
    """
    from fundus_rt.converters.pytorch.swin import identify_swin

    second = type(module).__name__ == "SwinTransformerV2"
    unread = sorted(set(options) - set(OPTIONS_OF_V2 if second else ()))
    if unread:
        read = f"only {', '.join(OPTIONS_OF_V2)} are read here" if second else "none is read here"
        raise UsageError(
            f"--architecture {title}: a Swin Transformer is rebuilt from its tensors, and of the arguments after ? {read}; got "
            f"{', '.join(unread)}. Leave them out; if the network was made with them, write it as a function without arguments "
            f"and name it with --architecture package.module:factory"
        )
    found = identify_swin(checkpoint, card, title.partition("?")[0] if second else None, options)
    own = sum(parameter.numel() for parameter in module.parameters())
    if found.account.network_parameters != own:
        raise UnsupportedCheckpointError(
            f"{checkpoint.path.name} holds {found.description} with {found.account.network_parameters:,} parameters, but "
            f"{title} has {own:,}; give the name of the network that it is, or leave --architecture out"
        )
    return replace(found, family=title, warnings=(*found.warnings, *warnings))


def _warnings_of(module: Any, library: str, name: str, card: ModelCard, stated: str) -> list[str]:
    """What the file cannot tell about an architecture, and where the card prepares pictures otherwise than it expects."""
    found = []
    if name.startswith(("inception_v3", "tf_inception_v3", "googlenet")):
        found.append(INCEPTION)
    if library != "timm":
        return found
    bare = name.partition(".")[0]
    twin = bare.removeprefix("tf_") if bare.startswith("tf_") else f"tf_{bare}"
    if stated != f"timm/{bare}" and require_timm().is_model(twin):
        found.append(
            f"timm's {bare} and {twin} may have the same tensors and differ in padding and BatchNorm's epsilon, which no tensor "
            f"shows; that the file is of {bare} is taken as given."
        )
    config, spec = getattr(module, "pretrained_cfg", None) or {}, card.preprocessing
    if "mean" in config and "std" in config:
        mean, std = config["mean"], config["std"]
        if not same_normalisation(spec, mean, std):
            found.append(
                f"timm's {name} was trained with mean {[round(float(v), 4) for v in mean]} and std "
                f"{[round(float(v), 4) for v in std]} on values from 0 to 1, the card {card.name!r} prepares with mean "
                f"{list(spec.mean)} and std {list(spec.std)} after the factor {spec.scale:.6g}; a network that was fine-tuned "
                f"usually keeps timm's."
            )
    return found
