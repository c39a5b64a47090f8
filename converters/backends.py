"""The frameworks that conversion needs, imported late, quietly, and with an answer when one is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fundus_rt.models.errors import BackendUnavailableError

_KEPT_ALIVE: list[Any] = []


def require(module: str) -> Any:
    """Import a module of the ``convert`` extra.

    Raises:
        BackendUnavailableError: it is not installed, or its own import fails; the message tells the two apart.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module.partition(".")[0]:
            raise BackendUnavailableError(
                f"{module} is not installed; converting a checkpoint needs it: pip install 'fundus-rt[convert]'"
            ) from error
        raise BackendUnavailableError(
            f"{module} is installed but needs {error.name}, which is not: pip install 'fundus-rt[convert]'"
        ) from error
    except (ImportError, RuntimeError) as error:
        raise BackendUnavailableError(
            f"{module} is installed but cannot be imported ({error}); reinstall it with pip install 'fundus-rt[convert]'"
        ) from error


def require_torchvision() -> Any:
    """The module ``torchvision``.

    Its wheel for CUDA stops over a CPU build of torch because two operators have no schema there. Only in that case the two
    schemas are declared (nothing here calls them), and the import tried again.

    Raises:
        BackendUnavailableError: torch or torchvision is missing or broken.
    """
    torch = require("torch")
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise BackendUnavailableError(f"torchvision cannot be imported ({error}); reinstall it") from error
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT_ALIVE.append(library)
    except ImportError:
        pass  # the import below says what is missing
    return require("torchvision")


def require_timm(module: str = "timm") -> Any:
    """``timm`` or a module of it; timm imports torchvision, see `require_torchvision`.

    Raises:
        BackendUnavailableError: torch, torchvision or timm is missing or broken.
    """
    require_torchvision()
    return require(module)


def require_timm_swin() -> Any:
    """The module ``timm.models.swin_transformer``; see `require_timm`."""
    return require_timm("timm.models.swin_transformer")


def require_keras() -> tuple[Any, Any]:
    """TensorFlow and Keras 2 (``tf_keras``), silenced and kept on the CPU.

    The reference answers of a network are those of the CPU: a GPU may compute fp32 products in TF32.

    Returns:
        The modules ``tensorflow`` and ``tf_keras``.

    Raises:
        BackendUnavailableError: one of them is missing or broken.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    with quiet_standard_error():
        tensorflow = require("tensorflow")
        keras = require("tf_keras")
        with suppress(RuntimeError):  # already initialised by the caller's own code: its choice stands
            tensorflow.config.set_visible_devices([], "GPU")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    return tensorflow, keras


@contextmanager
def quiet_standard_error() -> Iterator[None]:
    """Hold back what is written to standard error inside the block, C++ code included; shown only if the block fails."""
    try:
        stream = sys.__stderr__
        number = stream.fileno() if stream is not None else 2
        saved = os.dup(number)
    except (OSError, ValueError):  # no such stream, for example in a windowed process: nothing to hold back
        yield
        return
    with tempfile.TemporaryFile() as held:
        try:
            os.dup2(held.fileno(), number)
            yield
        except BaseException:
            os.dup2(saved, number)
            held.seek(0)
            os.write(number, held.read())
            raise
        finally:
            os.dup2(saved, number)
            os.close(saved)


@contextmanager
def quiet_tracing() -> Iterator[None]:
    """Silence the tracers' warnings (deprecation of the exporter, Python values frozen in a trace) inside the block."""
    loggers = [logging.getLogger(name) for name in ("tf2onnx", "tensorflow", "torch.onnx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def versions(*packages: str) -> dict[str, str]:
    """Installed versions of packages by their names in the registry; those that are missing are left out."""
    found = {}
    for package in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
