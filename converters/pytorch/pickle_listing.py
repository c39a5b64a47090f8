"""What a pickle asks for by name, listed without running any of it."""

from __future__ import annotations

import io
import pickle
import pickletools
import tarfile
from pathlib import Path
from typing import Any

from fundus_rt.converters.backends import require

DATA_CLASSES = (
    "_codecs.encode",
    *(
        f"builtins.{name}"
        for name in ("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range")
    ),
    *(f"builtins.{name}" for name in ("set", "slice", "str", "tuple")),
    "datetime.date",
    "datetime.datetime",
    "datetime.time",
    "datetime.timedelta",
    "datetime.timezone",
    "decimal.Decimal",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.numeric._frombuffer",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.core.numeric._frombuffer",
    "numpy.dtype",
    "numpy.ndarray",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib.PureWindowsPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
    "torch.torch_version.TorchVersion",
    "types.SimpleNamespace",
    "uuid.UUID",
)
"""Classes of plain data that training scripts store beside the weights. None of them is ever looked up: each is read as a
`LeftAside`, so that neither their code nor numpy's runs on what a file says."""

DICTIONARIES = (
    "addict.addict.Dict",
    "collections.defaultdict",
    "easydict.EasyDict",
    "lightning.fabric.utilities.data.AttributeDict",
    "lightning.pytorch.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "mmcv.utils.config.ConfigDict",
    "mmengine.config.config.ConfigDict",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "yacs.config.CfgNode",
)
"""Classes of dictionaries, read as plain ones without being looked up."""
SEQUENCES = ("collections.deque",)
"""Classes of lists, read as plain ones without being looked up."""
PLAIN_DATA = {*DATA_CLASSES, *DICTIONARIES, *SEQUENCES, "collections.Counter"}
NUMBERS = [
    "BFloat16",
    "Bool",
    "Byte",
    "Char",
    "ComplexDouble",
    "ComplexFloat",
    "Double",
    "Float",
    "Half",
    "Int",
    "Long",
    "QInt8",
    "QInt32",
    "QUInt8",
    "Short",
]
REBUILDERS = [
    "tensor",
    "tensor_v2",
    "tensor_v3",
    "parameter",
    "parameter_with_state",
    "sparse_tensor",
    "qtensor",
    "nested_tensor",
]
REBUILDERS += ["meta_tensor_no_storage", "device_tensor_from_cpu_tensor", "device_tensor_from_numpy"]
DTYPES = [
    "bfloat16",
    "bool",
    "complex64",
    "complex128",
    "float16",
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "qint8",
    "qint32",
    "quint8",
]
HARMLESS_GLOBALS = {
    "argparse.Namespace",
    "collections.OrderedDict",
    "torch.Size",
    "torch.Tensor",
    "torch.device",
    "torch.nn.parameter.Buffer",
    "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout",
    "torch.storage.TypedStorage",
    "torch.storage.UntypedStorage",
    *(f"torch.{place}{kind}Storage" for kind in NUMBERS for place in ("", "cuda.", "storage.")),
    *(f"torch._utils._rebuild_{what}" for what in REBUILDERS),
    *(f"torch.{kind}" for kind in DTYPES),
}
"""What torch.save names to put tensors together again: each name whole, for a name that only begins like one of these may
lead anywhere."""
LAYERS = ("torch.nn.", "torchvision.models.", "torchvision.ops.", "timm.layers.", "timm.models.")
"""Where the classes of a pickled network are in any case; named last, so that a stranger among them is not overlooked."""


class _Inert:
    """Answers everything that a pickle can ask of an object, and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def __call__(self, *args: Any, **kwargs: Any) -> _Inert:
        return _Inert()

    def __setstate__(self, state: Any) -> None: ...
    def __setitem__(self, key: Any, value: Any) -> None: ...
    def append(self, value: Any) -> None: ...
    def extend(self, values: Any) -> None: ...
    def add(self, value: Any) -> None: ...


def globals_asked_for(path: Path) -> tuple[str, ...]:
    """Names of the functions and classes, other than tensors and plain data, that a pickle asks for; nothing of it is run.

    Classes of layers, which any network asks for (torch, torchvision, timm), come last.
    """
    return walk(path)[0]


def walk(path: Path) -> tuple[tuple[str, ...], str]:
    """What a file's pickles ask for, and why the walk ended before their end; empty when it did not.

    Every global is answered with an inert stand-in, so the whole pickle can be walked. The walk is Python's own unpickler
    written in Python, whose memory grows only with what it has read.
    """
    asked: dict[str, bool] = {}

    class Lister(pickle._Unpickler):
        def find_class(self, module: str, name: str, /) -> Any:
            package = "builtins" if module == "__builtin__" else module
            full = f"{package}.{name}"
            if "." in name or (full not in HARMLESS_GLOBALS and full not in PLAIN_DATA):
                asked[full] = asked.get(full, True) and full.startswith(LAYERS) and "." not in name
            return _Inert

        def persistent_load(self, pid: Any, /) -> Any:
            of_class = isinstance(pid, tuple) and pid[:1] in (("module",), (b"module",))  # a class with its source, before 1.6
            return _Inert if of_class else _Inert()

    stopped = ""
    try:
        for stream in _pickles_of(path):
            for _ in pickletools.genops(stream):
                pass  # stops with an error at an opcode that claims more than the file holds, before anything is made of it
        for stream in _pickles_of(path):
            Lister(stream).load()
    except Exception as error:  # a hostile or damaged pickle may stop anywhere: what was asked until then still counts
        stopped = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return tuple(sorted(asked, key=asked.__getitem__)), stopped


def _pickles_of(path: Path) -> list[Any]:
    """Streams at the pickles of a torch file, the ones that torch itself reads: ``data.pkl`` of the zip format, else the
    file's five in a row, of which the last lists the storages.

    Which format it is, torch tells from the first four bytes, and the entry of a zip file it finds in its own way; a file
    made to look different to Python's zipfile is thus followed where torch would go.
    """
    content = path.read_bytes()
    if content.startswith(b"PK\x03\x04"):
        return [io.BytesIO(require("torch")._C.PyTorchFileReader(str(path)).get_record("data.pkl"))]
    if tarfile.is_tarfile(path):
        raise pickle.UnpicklingError("torch would take it for an archive of tar")
    return [io.BytesIO(content)] * 5


def protocol_of(path: Path) -> int:
    """Protocol of the pickle that names the tensors; 2 is what torch.save writes unless told otherwise."""
    try:
        streams = _pickles_of(path)
        start = streams[-1].getvalue()[:2]
    except (OSError, RuntimeError, pickle.UnpicklingError):
        return 0
    return int(start[1]) if len(start) == 2 and start[0] == 0x80 else 0
