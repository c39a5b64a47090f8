"""TensorRT's own builder on a machine with no GPU, for the tests only.

NVIDIA's Python bindings of TensorRT 11 ask for three libraries. TensorRT-RTX, whose library is on the public index, offers the
same entry points with the same interfaces, and builds engines with no GPU present. Three small libraries with the names that
the bindings ask for hand every call on. So networks are parsed and engines are built here by the real library; running one
needs a GPU. A user installs NVIDIA's own packages and never meets this.

What is fetched: two wheels by name, 147 MB, once, into the user's cache folder; or from the folder that the environment
variable ``FUNDUS_RT_TENSORRT_WHEELS`` names.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from fundus_rt.runtime.nvidia.tensorrt_library import TensorRTLibrary, import_tensorrt
from tests.conftest import environment

BINDINGS = "tensorrt-cu13-bindings==11.4.0.106"
LIBRARIES = "onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0"
FOLDER_VARIABLE = "FUNDUS_RT_TENSORRT_WHEELS"
FLAVOURS = ("tensorrt", "tensorrt_rtx")
COMMON = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
static void *entry(const char *library, const char *name) {
    static void *opened;
    if (!opened && !(opened = dlopen(library, RTLD_NOW | RTLD_LOCAL))) { fprintf(stderr, "%s\\n", dlerror()); abort(); }
    void *found = dlsym(opened, name);
    if (!found) { fprintf(stderr, "%s\\n", dlerror()); abort(); }
    return found;
}
"""
INFER = """
#define IN(name) entry("libtensorrt_rtx.so.1", name)
#define WHOLE(name) int32_t name(void) { return ((int32_t (*)(void))IN(#name))(); }
WHOLE(getInferLibVersion) WHOLE(getInferLibMajorVersion) WHOLE(getInferLibMinorVersion)
WHOLE(getInferLibPatchVersion) WHOLE(getInferLibBuildVersion)
void *createInferBuilder_INTERNAL(void *logger, int32_t asked) {
    return ((void *(*)(void *, int32_t))IN("createInferBuilder_INTERNAL"))(logger, getInferLibVersion());
}
void *createInferRuntime_INTERNAL(void *logger, int32_t asked) {
    return ((void *(*)(void *, int32_t))IN("createInferRuntime_INTERNAL"))(logger, getInferLibVersion());
}
void *createInferRefitter_INTERNAL(void *engine, void *logger, int32_t asked) {
    return ((void *(*)(void *, void *, int32_t))IN("createInferRefitter_INTERNAL"))(engine, logger, getInferLibVersion());
}
void *getPluginRegistry(void) { return ((void *(*)(void))IN("getPluginRegistry"))(); }
void *getBuilderPluginRegistry(int32_t kind) { return ((void *(*)(int32_t))IN("getBuilderPluginRegistry"))(kind); }
"""
PARSER = """
#define IN(name) entry("libtensorrt_onnxparser_rtx.so.1", name)
int32_t getNvOnnxParserVersion(void) { return ((int32_t (*)(void))IN("getNvOnnxParserVersion"))(); }
void *createNvOnnxParser_INTERNAL(void *network, void *logger, int32_t asked) {
    return ((void *(*)(void *, void *, int32_t))IN("createNvOnnxParser_INTERNAL"))(network, logger, getNvOnnxParserVersion());
}
void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int32_t asked) {
    return ((void *(*)(void *, void *, int32_t))IN("createNvOnnxParserRefitter_INTERNAL"))(
        refitter, logger, getNvOnnxParserVersion());
}
"""
PLUGIN = "bool initLibNvInferPlugins(void *logger, const char *space) { return true; }\n"
SOURCES = {"libnvinfer.so.11": INFER, "libnvonnxparser.so.11": PARSER, "libnvinfer_plugin.so.11": PLUGIN}


class HostUnavailable(Exception):
    """The technique cannot be used here; the message says why."""


@functools.cache
def host_folder() -> Path:
    """A folder with the bindings, ready to import; one sub-folder per flavour holds a package of that flavour's name.

    Raises:
        HostUnavailable: no Linux on x86-64, no gcc, or no wheels for this Python.
    """
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "AMD64"):
        raise HostUnavailable(f"the wheels are for Linux on x86-64, this is {sys.platform} on {platform.machine()}")
    if not shutil.which("gcc"):
        raise HostUnavailable("gcc is not installed")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fundus-rt-tests"
    recipe = "\n".join([BINDINGS, LIBRARIES, COMMON, *SOURCES.values(), sys.implementation.cache_tag])
    folder = cache / f"tensorrt-host-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / "making.lock"):  # tests run in several processes
        if not folder.is_dir():
            making = Path(tempfile.mkdtemp(prefix="making-", dir=cache))
            try:
                _make(making, cache)
                making.rename(folder)
            finally:
                shutil.rmtree(making, ignore_errors=True)
    return folder


def _make(folder: Path, cache: Path) -> None:
    package = folder / "bindings" / "tensorrt_bindings"
    with zipfile.ZipFile(_wheel(BINDINGS, cache)) as wheel:
        wheel.extractall(folder / "bindings", [name for name in wheel.namelist() if name.startswith("tensorrt_bindings/")])
    with zipfile.ZipFile(_wheel(LIBRARIES, cache)) as wheel:
        for stem in ("libtensorrt_rtx.so.", "libtensorrt_onnxparser_rtx.so."):
            name = next(name for name in wheel.namelist() if Path(name).name.startswith(stem))
            with wheel.open(name) as source, open(package / f"{stem}1", "wb") as target:
                shutil.copyfileobj(source, target)
    for name, source in SOURCES.items():
        words = ["gcc", "-shared", "-fPIC", "-O1", "-w", f"-Wl,-soname,{name}", "-Wl,-rpath,$ORIGIN", "-x", "c", "-"]
        done = subprocess.run([*words, "-o", str(package / name), "-ldl"], input=COMMON + source, capture_output=True, text=True)
        if done.returncode:
            raise HostUnavailable(f"gcc could not compile {name}: {done.stderr.strip()[:300]}")
    for flavour in FLAVOURS:  # what NVIDIA's own packages are called
        named = folder / flavour / flavour
        named.mkdir(parents=True)
        (named / "__init__.py").write_text("from tensorrt_bindings import *\nfrom tensorrt_bindings import __version__\n")


def _wheel(requirement: str, cache: Path) -> Path:
    """The wheel of a requirement: from the named folder, else from pip into the cache."""
    stem = requirement.replace("-", "_").replace("==", "-")
    given = os.environ.get(FOLDER_VARIABLE)
    folder = Path(given) if given else cache / "wheels" / str(sys.implementation.cache_tag)
    if not given and not list(folder.glob(f"{stem}-*.whl")):
        words = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "-d", str(folder)]
        done = subprocess.run([*words, requirement], capture_output=True, text=True, check=False)
        if done.returncode:
            raise HostUnavailable(f"pip could not fetch {requirement}: {(done.stderr or done.stdout).strip()[-300:]}")
    fitting = [path for path in folder.glob(f"{stem}-*.whl") if _fits_python(path)]
    if not fitting:
        raise HostUnavailable(f"no wheel of {requirement} for {sys.implementation.cache_tag} in {folder}")
    return fitting[0]


def _fits_python(wheel: Path) -> bool:
    tag = wheel.name.split("-")[2]
    return tag == "py3" or tag == f"cp{sys.version_info.major}{sys.version_info.minor}"


def require_host() -> Path:
    """`host_folder`, or the test is skipped with the reason."""
    try:
        return host_folder()
    except HostUnavailable as reason:
        pytest.skip(f"TensorRT's builder is not to be had: {reason}")


@contextmanager
def importable(flavour: str) -> Iterator[None]:
    """`flavour` can be imported in this process inside the block, as if NVIDIA's package were installed."""
    folder = require_host()
    added = [str(folder / flavour), str(folder / "bindings")]
    sys.path[:0] = added
    importlib.invalidate_caches()
    try:
        yield
    finally:
        for entry in added:
            sys.path.remove(entry)
        sys.modules.pop(flavour, None)  # the bindings themselves stay: they cannot be loaded twice


def host_library(flavour: str = "tensorrt_rtx") -> TensorRTLibrary:
    """The library under one of its names, through the package's own import; the test is skipped where it is not to be had."""
    with importable(flavour):
        return import_tensorrt(flavour)


def host_environment(flavour: str = "tensorrt_rtx") -> dict[str, str]:
    """For a process of its own: the working tree and the library under one of its names."""
    folder = require_host()
    variables = environment()
    paths = [variables["PYTHONPATH"], str(folder / flavour), str(folder / "bindings")]
    return {**variables, "PYTHONPATH": os.pathsep.join(paths)}
