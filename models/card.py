"""What a model *is*: the card that travels with every network of this package.

A card states the task, the meaning of each output, the author's preprocessing, the laterality rule, the licence, whom to
cite and what the model must not be used for. It is JSON: beside the code for the published models, and inside every
``.onnx`` file that the package writes (``metadata_props``, key `CARD_KEY`).
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from fundus_rt.models.errors import CardError

CARD_KEY = "fundus_rt.card"
"""Key of the card's JSON text in the ``metadata_props`` of an ONNX file."""

INTERPOLATIONS = (
    "pillow-nearest",
    "pillow-bilinear",
    "pillow-bicubic",
    "pillow-lanczos",
    "pillow-box",
    "opencv-nearest",
    "opencv-linear",
    "opencv-cubic",
    "opencv-area",
    "tf-bilinear",
    "tf-nearest",
    "keras-nearest",
)
"""Resize filters, each named by the library whose numbers it has.

``pillow-*`` widen with the reduction (antialias), ``opencv-*`` do not but for ``opencv-area``; ``tf-*`` are
`tf.image.resize` without antialias (float32 result); ``keras-nearest`` is Keras' `load_img` default, Pillow's nearest.
"""

FLOAT_INTERPOLATIONS = ("tf-bilinear",)
"""Filters that do not round to grey levels: their tensors are float32."""

CROP_MODES = ("none", "field-of-view", "center")
TASKS = ("regression", "binary", "multiclass", "multilabel")
ACTIVATIONS = ("none", "sigmoid", "softmax")
LATERALITY_RULES = ("none", "mirror-left")
FRAMEWORKS = ("pytorch", "keras")
INTENDED_USE = "Research use only. Not a medical device; not for diagnosis or treatment decisions."


@dataclass(frozen=True)
class PreprocessingSpec:
    """The author's way from a decoded photograph to the network's input.

    Order: crop, resize, mirror (a rule of the card, see `ModelCard.laterality`), colour order, then
    ``(value * scale - mean) / std`` per channel on grey levels 0 to 255.
    """

    input_size: tuple[int, int]
    """Height and width of the network's input, pixels."""
    crop_mode: str
    """``none`` (the whole picture), ``field-of-view`` (the square around the circular field, black outside the picture)
    or ``center`` (the largest centred square)."""
    interpolation: str
    """One of `INTERPOLATIONS`."""
    color_order: str
    """``RGB`` or ``BGR``: what the network was trained with. The shipped graph takes BGR and reorders inside."""
    scale: float
    """Factor on grey levels 0 to 255, applied first. 1.0 where the network scales by itself."""
    mean: tuple[float, float, float]
    """Subtracted after scaling, in the network's colour order."""
    std: tuple[float, float, float]
    """Divides after the mean is subtracted, in the network's colour order."""
    assumed: tuple[str, ...] = ()
    """Names of the fields above that the authors did not publish. Every result repeats them."""

    @property
    def input_dtype(self) -> str:
        """``float32`` where the resize filter does not round to grey levels, else ``uint8``."""
        return "float32" if self.interpolation in FLOAT_INTERPOLATIONS else "uint8"

    def problems(self) -> list[str]:
        """Every reason why this specification cannot be used; empty when it can."""
        found = []
        if len(self.input_size) != 2 or not all(isinstance(v, int) and 16 <= v <= 4096 for v in self.input_size):
            found.append(f"preprocessing.input_size is {self.input_size}, expected two whole numbers from 16 to 4096")
        found += _one_of("preprocessing.crop_mode", self.crop_mode, CROP_MODES)
        found += _one_of("preprocessing.interpolation", self.interpolation, INTERPOLATIONS)
        found += _one_of("preprocessing.color_order", self.color_order, ("RGB", "BGR"))
        if not _is_number(self.scale) or self.scale <= 0:
            found.append(f"preprocessing.scale is {self.scale!r}, expected a number above 0")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if len(values) != 3 or not all(_is_number(v) for v in values):
                found.append(f"preprocessing.{name} is {values!r}, expected three numbers")
            elif name == "std" and min(values) <= 0:
                found.append(f"preprocessing.std is {values!r}, expected three numbers above 0")
        known = {f.name for f in dataclasses.fields(self)} - {"assumed"}
        found += [f"preprocessing.assumed names {n!r}, which is no field" for n in self.assumed if n not in known]
        return found


@dataclass(frozen=True)
class OutputSpec:
    """One output of the network and what its numbers mean."""

    name: str
    """Name of the ONNX output and of the entry in a result, for example ``age``."""
    task: str
    """One of `TASKS`."""
    unit: str
    """Unit of the value: ``years`` for an age, ``probability`` for classes."""
    tolerance: float
    """Largest difference to the original framework, in `unit`, with which a conversion is written."""
    labels: tuple[str, ...] = ()
    """Class names in the order of the network's outputs; for a binary output with one column, the second label is the
    one whose probability the column is. Empty for a regression."""
    activation: str | None = None
    """What is still to be applied to the network's numbers. None: the conversion states it from the file."""
    columns: int | None = None
    """Number of columns of the output. None: the conversion states it from the file."""
    scale: float = 1.0
    """Regression only: value = column * scale + offset (a standardised target)."""
    offset: float = 0.0
    threshold: float | None = None
    """Operating point on the probability. Binary and multilabel: from it on, the (second) label is said; None means 0.5.
    Multiclass: the least probability with which the most probable class is said, below it the decision is ``unknown``;
    None means that the most probable class is always said."""
    labels_assumed: bool = False
    """True where the authors did not publish which column is which class; every result then says so."""
    budget: float | None = None
    """Largest difference to the original, in `unit`, that a file in lower precision may have. None: `tolerance`."""

    def allowed(self, precision: str) -> float:
        """Largest difference to the original, in `unit`, for a graph in ``fp32``, ``fp16``, ``int8`` or ``mixed``."""
        return self.tolerance if precision == "fp32" or self.budget is None else self.budget

    def problems(self) -> list[str]:
        """Every reason why this output cannot be used; empty when it can."""
        where = f"output {self.name!r}"
        found = _one_of(f"{where} task", self.task, TASKS)
        if not self.name or self.name in ("frames", "receipt"):
            found.append(f"{where}: the name must be given and be neither 'frames' nor 'receipt'")
        if not self.unit:
            found.append(f"{where}: unit is empty")
        if not _is_number(self.tolerance) or self.tolerance <= 0:
            found.append(f"{where}: tolerance is {self.tolerance!r}, expected a number above 0")
        if self.budget is not None and not (_is_number(self.budget) and self.budget >= self.tolerance):
            found.append(f"{where}: budget is {self.budget!r}, expected a number of {self.tolerance:g} or more, its tolerance")
        if self.activation is not None:
            found += _one_of(f"{where} activation", self.activation, ACTIVATIONS)
        if self.task == "regression" and self.labels:
            found.append(f"{where}: a regression has no labels, got {list(self.labels)}")
        if self.task == "binary" and len(self.labels) != 2:
            found.append(f"{where}: a binary output needs two labels, got {list(self.labels)}")
        if self.task in ("multiclass", "multilabel") and len(self.labels) < 2:
            found.append(f"{where}: needs two labels or more, got {list(self.labels)}")
        if len(set(self.labels)) != len(self.labels):
            found.append(f"{where}: labels repeat: {list(self.labels)}")
        allowed = {"regression": (1,), "binary": (1, 2)}.get(self.task, (len(self.labels),))
        if self.columns is not None and self.columns not in allowed:
            found.append(f"{where}: {self.columns} columns, expected {' or '.join(map(str, allowed))} for its labels")
        if self.threshold is not None and not (_is_number(self.threshold) and 0 < self.threshold < 1):
            found.append(f"{where}: threshold is {self.threshold!r}, expected a number between 0 and 1")
        return found


@dataclass(frozen=True)
class Citation:
    """Whom to cite, in the form that the authors ask for."""

    text: str
    url: str = ""
    acknowledgement: str = ""
    """The sentence that the authors ask to print in acknowledgements; empty where they ask for none."""


@dataclass(frozen=True)
class ModelCard:
    """Everything that has to be known of a model to run it rightly and to say what its answer is worth."""

    name: str
    title: str
    architecture: str
    """The network, in words, for example ``Swin Transformer``."""
    families: tuple[str, ...]
    """Names of the architecture families that a checkpoint for this card may hold, for example ``swin``."""
    framework: str
    """``pytorch`` or ``keras``: what the published file was made with."""
    outputs: tuple[OutputSpec, ...]
    preprocessing: PreprocessingSpec
    laterality: str
    """``mirror-left``: pictures of left eyes are mirrored before the network sees them; ``none``: never."""
    weights: str
    """Where the weights are to be had, and their status."""
    weights_url: str
    licence: str
    """Licence of the weights, or what is known of it."""
    citation: Citation
    performance: str
    """What the authors, or for the bundled model we, measured, and on what."""
    limits: tuple[str, ...]
    intended_use: str = INTENDED_USE
    notes: tuple[str, ...] = ()
    bundled: str = ""
    """File name of the weights that the package ships, relative to ``models/bundled``; empty when it ships none."""
    canary: dict[str, Any] = field(default_factory=dict)
    """Set by the conversion: two drawn pictures and the original's answers to them (`fundus_rt.models.canary`)."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Set by the conversion: SHA-256 and format of the checkpoint, versions, measured differences."""

    def problems(self) -> list[str]:
        """Every reason why this card cannot be used; empty when it can."""
        found = []
        if not self.name or set(self.name) - set("abcdefghijklmnopqrstuvwxyz0123456789-"):
            found.append(f"name is {self.name!r}, expected lower-case letters, digits and hyphens")
        for key in ("title", "architecture", "weights", "licence", "performance", "intended_use"):
            if not getattr(self, key):
                found.append(f"{key} is empty")
        if not self.citation.text:
            found.append("citation.text is empty")
        if not self.limits:
            found.append("limits is empty: state at least one")
        if not self.families:
            found.append("families is empty: name the architectures that the card accepts")
        found += _one_of("framework", self.framework, FRAMEWORKS)
        found += _one_of("laterality", self.laterality, LATERALITY_RULES)
        if not self.outputs:
            found.append("outputs is empty")
        names = [output.name for output in self.outputs]
        if len(set(names)) != len(names):
            found.append(f"output names repeat: {names}")
        for output in self.outputs:
            found += output.problems()
        return found + self.preprocessing.problems()

    def validate(self) -> ModelCard:
        """Return this card, or raise `CardError` that lists every problem at once."""
        found = self.problems()
        if found:
            listing = "\n".join(f"  - {problem}" for problem in found)
            raise CardError(f"card {self.name!r} cannot be used, {len(found)} problem(s); mend each line:\n{listing}")
        return self

    def to_json(self) -> str:
        """The card as JSON text with stable key order."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False)


def card_from_json(text: str, origin: str = "card") -> ModelCard:
    """Read and validate a card.

    Args:
        text: JSON text as `ModelCard.to_json` writes it.
        origin: what to call the source in an error, for example the file's name.

    Raises:
        CardError: not JSON, a missing or unknown key, a value of the wrong type, or a card that does not validate.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise CardError(f"{origin} is not JSON ({error}); expected what `fundus-rt models show --json` prints") from error
    if not isinstance(data, dict):
        raise CardError(f"{origin} holds a JSON {type(data).__name__}, expected an object with a card's keys")
    problems: list[str] = []
    parts: dict[str, Any] = dict(data)
    parts["preprocessing"] = _build(PreprocessingSpec, data.get("preprocessing"), "preprocessing", problems)
    parts["citation"] = _build(Citation, data.get("citation"), "citation", problems)
    outputs = data.get("outputs")
    if not isinstance(outputs, list):
        problems.append("outputs: expected a list")
        outputs = []
    parts["outputs"] = tuple(_build(OutputSpec, o, f"outputs[{i}]", problems) for i, o in enumerate(outputs))
    card = _build(ModelCard, parts, "card", problems)
    if problems:
        listing = "\n".join(f"  - {problem}" for problem in problems)
        raise CardError(f"{origin} cannot be read as a card, {len(problems)} problem(s):\n{listing}")
    assert isinstance(card, ModelCard)
    return card.validate()


def _build(kind: type, data: Any, where: str, problems: list[str]) -> Any:
    """An instance of the dataclass `kind` from a JSON object; adds to `problems` and returns None where it cannot."""
    if not isinstance(data, dict):
        problems.append(f"{where}: expected an object, got {type(data).__name__}")
        return None
    fields = {f.name: f for f in dataclasses.fields(kind)}
    before = len(problems)
    problems += [f"{where}: unknown key {key!r}" for key in data if key not in fields]
    for name, spec in fields.items():
        required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        if required and name not in data:
            problems.append(f"{where}: key {name!r} is missing")
    values = {}
    for key, value in data.items():
        if key in fields:
            problem = _type_problem(str(fields[key].type), value)
            if problem:
                problems.append(f"{where}.{key}: {problem}")
            values[key] = tuple(value) if isinstance(value, list) else value
    return kind(**values) if len(problems) == before else None


def _type_problem(annotation: str, value: Any) -> str:
    """Why a JSON value does not fit a field's annotation; empty when it does."""
    if value is None:
        return "" if "None" in annotation else "is null"
    if annotation.startswith("tuple["):
        if not isinstance(value, (list, tuple)):
            return f"expected a list, got {value!r}"
        wanted: tuple[type, ...] = (str,) if "str" in annotation else (int, float)
        if "Spec" not in annotation and not all(isinstance(v, wanted) and not isinstance(v, bool) for v in value):
            return f"expected a list of {'texts' if wanted == (str,) else 'numbers'}, got {value!r}"
        return ""
    if annotation.startswith("bool"):
        return "" if isinstance(value, bool) else f"expected true or false, got {value!r}"
    for name, types in (("str", (str,)), ("float", (int, float)), ("int", (int,)), ("dict", (dict,))):
        if annotation.startswith(name):
            fits = isinstance(value, types) and not isinstance(value, bool)
            return "" if fits else f"expected {name}, got {value!r}"
    return ""


def _one_of(where: str, value: Any, allowed: tuple[str, ...]) -> list[str]:
    return [] if value in allowed else [f"{where} is {value!r}, expected one of {', '.join(allowed)}"]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value and abs(value) != float("inf")
