"""A stand-in for the CUDA driver's library: NVIDIA's real bindings load it, so everything above libcuda is the real thing.

It answers for one integrated GPU as a Jetson Orin does; environment variables make it refuse. It runs no kernels.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import environment

SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int stated(const char *name, int otherwise) { const char *text = getenv(name); return text ? atoi(text) : otherwise; }

int cuInit(unsigned flags) { if (getenv("FAKE_HANG")) for (;;) sleep(1000); return stated("FAKE_INIT", 0); }
int cuDriverGetVersion(int *version) { *version = stated("FAKE_VERSION", 12060); return 0; }
int cuDeviceGetCount(int *count) { *count = stated("FAKE_COUNT", 1); return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Orin", size); return 0; }
int cuGetErrorString(int status, const char **text) { *text = "words of the driver"; return 0; }
#ifndef WITHOUT_ATTRIBUTES
/* CUdevice_attribute of cuda.h: 16 MULTIPROCESSOR_COUNT, 18 INTEGRATED, 75 and 76 COMPUTE_CAPABILITY_MAJOR and _MINOR. */
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 7 : attribute == 18 ? 1 : attribute == 16 ? stated("FAKE_PROCESSORS", 16) : 0;
  return 0;
}
#endif
#ifndef BEFORE_CUDA_12
int cuGetProcAddress_v2(const char *symbol, void **function, int version, unsigned long long flags, int *found) {
  Dl_info here;
  dladdr((void *)cuInit, &here);
  *function = dlsym(dlopen(here.dli_fname, RTLD_NOW | RTLD_NOLOAD), symbol);
  if (found) *found = *function ? 0 : 1;
  return *function ? 0 : 500;
}
#endif
"""


def with_fake_driver(folder: Path, *defined: str, **variables: str) -> dict[str, str]:
    """The environment of a process that finds the stand-in as its driver; skips where it cannot be made or loaded."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc, to compile a stand-in for the driver's library")
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        pytest.skip("needs NVIDIA's cuda-bindings")
    folder.mkdir(exist_ok=True)
    (folder / "libcuda.c").write_text(SOURCE)
    flags = [f"-D{name}" for name in defined]
    library = str(folder / "libcuda.so.1")
    subprocess.run(["gcc", *flags, "-shared", "-fPIC", "-o", library, str(folder / "libcuda.c"), "-ldl"], check=True)
    before = os.environ.get("LD_LIBRARY_PATH", "")
    return {**environment(), "LD_LIBRARY_PATH": f"{folder}{os.pathsep}{before}".rstrip(os.pathsep), **variables}
