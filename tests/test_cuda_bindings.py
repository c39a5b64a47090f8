"""NVIDIA's real bindings: every name that is used is there, and what is passed reaches the driver.

For the second, a driver's library of host memory is compiled from C, and a process of its own finds it in the place of
``libcuda.so.1``.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fundus_rt.runtime.nvidia.cuda_driver import LOST, UNRECORDABLE
from tests import fake_cuda_driver, fake_cuda_names
from tests.conftest import REPOSITORY
from tests.fake_cuda import FakeDriver

MEMORY = r"""
#include <stdint.h>
typedef unsigned long long address;
struct Copy2D {  /* CUDA_MEMCPY2D of cuda.h */
  size_t srcXInBytes, srcY; int srcMemoryType; const void *srcHost; address srcDevice; void *srcArray; size_t srcPitch;
  size_t dstXInBytes, dstY; int dstMemoryType; void *dstHost; address dstDevice; void *dstArray; size_t dstPitch;
  size_t WidthInBytes, Height;
};
struct Work { int kind; char *to; const char *from; size_t bytes, rows, to_pitch, from_pitch; };
static struct Work recorded[64];
static int count, recording, contexts, live, stuck;
static int context_mark, stream_mark, graph_mark, launchable_mark, module_mark, function_mark;

static void work(struct Work w) {
  if (recording) { recorded[count++] = w; return; }
  if (w.kind == 0) for (size_t r = 0; r < w.rows; ++r) memcpy(w.to + r * w.to_pitch, w.from + r * w.from_pitch, w.bytes);
  if (w.kind == 1) memset(w.to, (int)w.rows, w.bytes);
  if (w.kind == 2) for (size_t i = 0; i < w.bytes; ++i) ++w.to[i];
}
int cuDevicePrimaryCtxRetain(void **context, int device) { ++contexts; *context = &context_mark; return 0; }
int cuDevicePrimaryCtxRelease(int device) { --contexts; return 0; }
int cuCtxSetCurrent(void *context) { return context == &context_mark ? 0 : 201; }
int cuMemGetInfo(size_t *free_, size_t *total) { *free_ = 6000000000u; *total = 8000000000u; return 0; }
int cuMemAlloc(address *to, size_t bytes) { if (bytes > 6000000000u) return 2; ++live; *to = (address)malloc(bytes); return 0; }
int cuMemFree(address memory) { --live; free((void *)memory); return stuck; }
int cuMemHostAlloc(void **to, size_t bytes, unsigned flags) { ++live; *to = malloc(bytes); return flags == 3 ? 0 : 1; }
int cuMemFreeHost(void *memory) { --live; free(memory); return stuck; }
int cuMemHostGetDevicePointer(address *to, void *memory, unsigned flags) { *to = (address)memory; return 0; }
int cuStreamCreate(void **stream, unsigned flags) { ++live; *stream = &stream_mark; return flags == 1 ? 0 : 1; }
int cuStreamDestroy(void *stream) { --live; return stream == &stream_mark ? stuck : 400; }
int cuStreamSynchronize(void *stream) { return stuck; }
int cuMemcpyHtoDAsync(address to, const void *from, size_t bytes, void *stream) {
  work((struct Work){0, (char *)to, from, bytes, 1, 0, 0});
  return stream == &stream_mark ? stuck : 400;
}
int cuMemcpyDtoHAsync(void *to, address from, size_t bytes, void *stream) {
  work((struct Work){0, to, (char *)from, bytes, 1, 0, 0});
  return stream == &stream_mark ? stuck : 400;
}
int cuMemcpy2DAsync(const struct Copy2D *c, void *stream) {
  if (c->srcMemoryType != 1 || c->dstMemoryType != 2 || c->srcXInBytes || c->dstXInBytes || c->srcY || c->dstY) return 1;
  work((struct Work){0, (char *)c->dstDevice, c->srcHost, c->WidthInBytes, c->Height, c->dstPitch, c->srcPitch});
  return 0;
}
int cuMemsetD8Async(address to, unsigned char value, size_t bytes, void *stream) {
  work((struct Work){1, (char *)to, 0, bytes, value, 0, 0});
  return 0;
}
int cuStreamBeginCapture(void *stream, int mode) { recording = 1; count = 0; return mode == 1 ? 0 : 1; }
int cuStreamEndCapture(void *stream, void **graph) { recording = 0; ++live; *graph = &graph_mark; return 0; }
int cuGraphInstantiateWithFlags(void **launchable, void *graph, unsigned long long flags) {
  ++live; *launchable = &launchable_mark; return graph == &graph_mark && flags == 0 ? 0 : 1;
}
int cuGraphLaunch(void *launchable, void *stream) {
  for (int i = 0; i < count; ++i) work(recorded[i]);
  return launchable == &launchable_mark && stream == &stream_mark ? 0 : 400;
}
int cuGraphExecDestroy(void *launchable) { --live; return launchable == &launchable_mark ? 0 : 400; }
int cuGraphDestroy(void *graph) { --live; return graph == &graph_mark ? 0 : 400; }
int cuModuleLoadData(void **module, const void *image) {
  if (memcmp(image, "code", 5)) return 209;
  ++live; *module = &module_mark; return 0;
}
int cuModuleUnload(void *module) { --live; return module == &module_mark ? 0 : 400; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
  *function = &function_mark; return strcmp(name, "add") ? 500 : 0;
}
int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void *stream, void **parameters, void **extra) {
  if (function != &function_mark || gx != 2 || gy != 3 || gz != 1 || bx != 32 || by != 4 || bz != 1 || shared != 64) return 1;
  if (stream != &stream_mark || extra) return 400;
  size_t times = *(int32_t *)parameters[1] * (size_t)*(float *)parameters[2];
  work((struct Work){2, (char *)*(address *)parameters[0], 0, times, 0, 0, 0});
  return 0;
}
int fake_live(void) { return live * 1000 + contexts; }
void fake_stick(int status) { stuck = status; }
"""

SCRIPT = """
import ctypes
import numpy as np
from fundus_rt.models.errors import BackendUnavailableError, DeviceLostError, DeviceMemoryError
from fundus_rt.runtime.nvidia.cuda_device import CudaDevice

library = ctypes.CDLL("libcuda.so.1")
with CudaDevice() as device:
    assert (device.name, device.compute_capability, device.driver_version, device.integrated) == ("Orin", (8, 7), "12.6", True)
    assert device.memory() == (6_000_000_000, 8_000_000_000)
    stream, host, there, back = device.stream(), device.pinned((4, 6), "uint8"), device.buffer(40), device.pinned((40,), "uint8")
    host.array[:] = np.arange(24).reshape(4, 6)
    kernel = device.module(b"code\\0").function("add")
    with device.capture(stream) as graph:
        device.clear(there, 40, stream)
        device.upload_rows(there, 8, host.address + 7, 6, 3, 3, stream, to=1)
        device.upload(there, host, 4, stream, to=30, start=2)
        device.launch(kernel, (2, 3, 1), (32, 4, 1), [there, np.int32(5), np.float32(2.0)], stream, 64)
        device.download(back, there, 40, stream)
    assert not back.array.any()
    for first in (0, 100):
        host.array[:] = np.arange(24).reshape(4, 6) + first
        graph.launch(stream)
        stream.synchronize()
        expected = np.zeros(40, np.uint8)
        for row in range(3):
            expected[1 + 8 * row : 4 + 8 * row] = host.array.reshape(-1)[7 + 6 * row : 10 + 6 * row]
        expected[30:34] = host.array.reshape(-1)[2:6]
        expected[:10] += 1
        assert back.array.tolist() == expected.tolist(), (back.array, expected)
    try:
        device.buffer(7_000_000_000)
        raise SystemExit("the driver has no such memory")
    except DeviceMemoryError as error:
        assert "a buffer of 7000.0 MB: 6000.0 MB of 8000.0 MB are free" in str(error), error
    try:
        device.module(b"other")
        raise SystemExit("no code of this GPU")
    except BackendUnavailableError as error:
        assert "CUDA_ERROR_NO_BINARY_FOR_GPU (words of the driver) from cuModuleLoadData" in str(error), error
    graph.close()
    kept = back.array[3:]
    del kernel
    library.fake_stick(700)
    try:
        stream.synchronize()
        raise SystemExit("the GPU is lost")
    except DeviceLostError as error:
        assert "Orin stopped: CUDA_ERROR_ILLEGAL_ADDRESS" in str(error), error
    stream.close()
    for memory in (host, there, back):
        memory.free()
assert library.fake_live() == 1001, library.fake_live()
del kept, memory, host, back
assert library.fake_live() == 0, library.fake_live()
"""


def test_everything_reaches_the_driver_through_the_real_bindings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_cuda_driver, "SOURCE", fake_cuda_driver.SOURCE + MEMORY)
    environment = fake_cuda_driver.with_fake_driver(tmp_path / "driver")
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def names_used() -> tuple[set[str], set[str]]:
    """Functions and constants of NVIDIA's two modules in the package's source, by what they look like."""
    words: set[str] = set()
    for path in (REPOSITORY / "runtime").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.add(node.value)
            elif isinstance(node, ast.Attribute):
                words.add(node.attr)
    driver = {word for word in words if re.fullmatch(r"cu[A-Z]\w+|CU[a-z_]\w*[a-zA-Z0-9]|CUDA_MEMCPY2D", word)}
    return driver, {word for word in words if re.fullmatch(r"nvrtc[A-Z]\w+", word)} - {"nvrtcGet"}


def test_every_name_exists_in_the_real_bindings_with_the_value_of_the_fake() -> None:
    real = pytest.importorskip("cuda.bindings.driver")
    nvrtc = pytest.importorskip("cuda.bindings.nvrtc")
    names, compiler_names = names_used()
    assert {"cuMemAlloc", "cuGraphLaunch", "CU_STREAM_NON_BLOCKING"} <= names
    groups = [
        real,
        *(getattr(real, name) for name in ("CUstream_flags", "CUstreamCaptureMode", "CUmemorytype", "CUdevice_attribute")),
    ]
    assert [name for name in sorted(names) if not any(hasattr(group, name) for group in groups)] == []
    compiler_names |= {f"nvrtcGet{kind}{end}" for kind in ("CUBIN", "PTX") for end in ("", "Size")}
    assert [name for name in sorted(compiler_names) if not hasattr(nvrtc, name)] == []
    for kind in ("CUresult", "CUdevice_attribute", "CUstreamCaptureMode", "CUstream_flags", "CUmemorytype"):
        for name, value in getattr(fake_cuda_names, kind).__members__.items():
            assert int(getattr(getattr(real, kind), name)) == int(value), name
    assert (real.CU_MEMHOSTALLOC_PORTABLE, real.CU_MEMHOSTALLOC_DEVICEMAP) == (
        FakeDriver.CU_MEMHOSTALLOC_PORTABLE,
        FakeDriver.CU_MEMHOSTALLOC_DEVICEMAP,
    )
    copy = real.CUDA_MEMCPY2D()
    copy.srcMemoryType, copy.dstMemoryType = real.CUmemorytype.CU_MEMORYTYPE_HOST, real.CUmemorytype.CU_MEMORYTYPE_DEVICE
    numbers = {"srcHost": 4096, "srcPitch": 10, "dstDevice": 1 << 40, "dstPitch": 8, "WidthInBytes": 3, "Height": 2}
    for name, number in numbers.items():
        setattr(copy, name, number)
        assert int(getattr(copy, name)) == number


def test_the_statuses_of_a_lost_gpu_and_of_a_refused_capture_are_the_drivers_own_words() -> None:
    real = pytest.importorskip("cuda.bindings.driver")
    known = set(real.CUresult.__members__)
    newer = {"CUDA_ERROR_TENSOR_MEMORY_LEAK", "CUDA_ERROR_CONTAINED"}  # not in the first releases for CUDA 12
    assert LOST - newer <= known
    assert known >= UNRECORDABLE
    assert not LOST & UNRECORDABLE


def test_the_real_bindings_take_the_arguments_that_are_given() -> None:
    """Each function's own documented parameters, counted, against the fake's, which the package's calls have passed."""
    real = pytest.importorskip("cuda.bindings.driver")
    wrong = []
    for name, function in vars(FakeDriver).items():
        if name.startswith("cu") and callable(function):
            signature = (getattr(real, name).__doc__ or "").strip().splitlines()[0]
            count = 0 if "()" in signature else signature.count(",") + 1
            mine = function.__code__.co_argcount - 1
            if name != "cuLaunchKernel" and mine != count:
                wrong.append(f"{signature}, called with {mine}")
    assert wrong == []
