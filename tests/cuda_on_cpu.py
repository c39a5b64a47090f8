"""CUDA kernels on a processor: the unchanged source compiled by g++, and a device that launches it.

The threads of a block are fibers that take turns: each runs to its next ``__syncthreads`` or to its end. A block whose threads
wait at a barrier while others have ended is an error, as on a GPU. Shared memory is filled with a pattern before each block, so
that a value that was never written does not happen to be 0.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SHARED_BYTES = 48 * 1024
"""What a launch may ask for without a special permission."""

SHIM = r"""
#include <cfenv>
#include <cmath>
#include <cstring>
#include <functional>
#include <setjmp.h>
#include <ucontext.h>
struct dim3 { unsigned x, y, z; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;
#define __global__
#define __device__
#define __shared__
#define __launch_bounds__(n)
uint4 shared_memory[3072];
static inline unsigned atomicAdd(unsigned* place, unsigned value) { unsigned old = *place; *place += value; return old; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline int __float2int_rn(float a) { return (int)std::nearbyintf(a); }
static inline float __int_as_float(int bits) { float real; std::memcpy(&real, &bits, 4); return real; }
static ucontext_t entry, fibers[256];
static jmp_buf scheduler, places[256];
static char stacks[256][32768], begun[256], ended[256];
static unsigned current;
static std::function<void()> kernel;
static inline void to_scheduler() { if (!_setjmp(places[current])) _longjmp(scheduler, 1); }
static inline void __syncthreads() { unsigned me = current; to_scheduler(); threadIdx = {me, 0, 0}; }
static void fiber_main() { for (;;) { kernel(); ended[current] = 1; to_scheduler(); } }
static void resume(unsigned thread) {  // swapcontext only once for each fiber: it asks the operating system every time
  current = thread; threadIdx = {thread, 0, 0};
  if (_setjmp(scheduler)) return;
  if (begun[thread]) _longjmp(places[thread], 1);
  begun[thread] = 1;
  getcontext(&fibers[thread]);
  fibers[thread].uc_stack.ss_sp = stacks[thread];
  fibers[thread].uc_stack.ss_size = sizeof(stacks[thread]);
  fibers[thread].uc_link = nullptr;
  makecontext(&fibers[thread], fiber_main, 0);
  swapcontext(&entry, &fibers[thread]);
}
static int launch(unsigned blocks, unsigned threads, unsigned shared_bytes, std::function<void()> body) {
  if (shared_bytes > sizeof(shared_memory) || threads > 256) return 1;
  kernel = body;
  blockDim = {threads, 1, 1}; gridDim = {blocks, 1, 1};
  for (unsigned b = 0; b < blocks; ++b) {
    blockIdx = {b, 0, 0};
    std::memset(shared_memory, 0xCD, sizeof(shared_memory));
    std::memset(ended, 0, sizeof(ended));
    unsigned alive = threads;
    while (alive) {
      unsigned done = 0;
      for (unsigned t = 0; t < threads; ++t) {
        resume(t);
        done += ended[t];
      }
      if (done != 0 && done != threads) { std::memset(begun, 0, sizeof(begun)); return 2; }
      alive = threads - done;
    }
    const unsigned char* beyond = (const unsigned char*)shared_memory + shared_bytes;
    for (size_t i = 0; i < sizeof(shared_memory) - shared_bytes; ++i) if (beyond[i] != 0xCD) return 3;
  }
  return 0;
}
"""
ENTRIES = r"""
#define RUN_ROWS(ROWS) \
  extern "C" int run_rows_pass_##ROWS(unsigned blocks, unsigned threads, unsigned shared_bytes, const unsigned char* crop, \
      const int* parameters, void* narrow, unsigned* receipts, int width, int height) { \
    return launch(blocks, threads, shared_bytes, [=] { rows_pass_##ROWS(crop, parameters, narrow, receipts, width, height); }); \
  }
RUN_ROWS(1)
RUN_ROWS(2)
RUN_ROWS(4)
extern "C" int run_columns_pass(unsigned blocks, unsigned threads, unsigned shared_bytes, const void* narrow,
    const int* parameters, void* result, float* written, int width, int height) {
  return launch(blocks, threads, shared_bytes, [=] { columns_pass(narrow, parameters, result, written, width, height); });
}
"""
PROBLEMS = {
    1: "more shared memory or threads than a block has",
    2: "threads of a block at different barriers",
    3: "wrote beyond shared memory",
}

has_compiler = shutil.which("g++") is not None


class Memory:
    """Stands for device memory and for pinned memory alike."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        raw = np.full(int(np.prod(shape)) * np.dtype(dtype).itemsize + 16, 0xCD, np.uint8)
        start = -raw.ctypes.data % 16
        self.array = raw[start : raw.size - 16 + start].view(dtype).reshape(shape)
        self.address = self.device_address = self.array.ctypes.data
        self.nbytes = self.array.nbytes

    def free(self) -> None:
        """Nothing: the array goes with the object."""


class Kernel:
    """A compiled kernel by its name."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.call = getattr(library, f"run_{name}")


class Library:
    """A compiled source."""

    def __init__(self, path: str) -> None:
        self.library = ctypes.CDLL(path)

    def function(self, name: str) -> Kernel:
        """The kernel of that name."""
        return Kernel(self.library, name)


class CpuDevice:
    """What `fundus_rt.runtime.nvidia.cuda_device.CudaDevice` offers, on the processor. Work is done at once."""

    compute_capability = (0, 0)
    """No GPU has this."""

    def __init__(self, folder: Path, integrated: bool = False) -> None:
        self.folder = folder
        self.integrated = integrated
        self.copies: list[tuple[str, int]] = []

    def stream(self) -> Any:
        """Nothing waits here."""
        return None

    def buffer(self, nbytes: int) -> Memory:
        """Memory whose content is no zeros."""
        return Memory((nbytes,), np.uint8)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Memory:
        """As `buffer`, as an array."""
        return Memory(shape, dtype)

    def upload(self, buffer: Memory, pinned: Memory, nbytes: int, stream: Any, *, to: int = 0, start: int = 0) -> None:
        """Copy at once."""
        self.copies.append(("upload", nbytes))
        buffer.array.view(np.uint8)[to : to + nbytes] = pinned.array.reshape(-1).view(np.uint8)[start : start + nbytes]

    def download(self, pinned: Memory, buffer: Memory, nbytes: int, stream: Any, *, to: int = 0, start: int = 0) -> None:
        """Copy at once."""
        self.copies.append(("download", nbytes))
        pinned.array.reshape(-1).view(np.uint8)[to : to + nbytes] = buffer.array.view(np.uint8)[start : start + nbytes]

    def compile(self, source: str, name: str, options: Sequence[str]) -> bytes:
        """The path of a library that g++ made of the source."""
        assert "--fmad=false" in options
        return _compiled(source, str(self.folder)).encode()

    def module(self, code: bytes) -> Library:
        """Open what `compile` made."""
        return Library(code.decode())

    def launch(
        self,
        function: Kernel,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        arguments: Sequence[Any],
        stream: Any,
        shared_bytes: int = 0,
    ) -> None:
        """Run a kernel to its end."""
        assert grid[1:] == block[1:] == (1, 1)
        assert shared_bytes <= SHARED_BYTES
        values = [_argument(argument) for argument in arguments]
        status = function.call(ctypes.c_uint(grid[0]), ctypes.c_uint(block[0]), ctypes.c_uint(shared_bytes), *values)
        assert status == 0, PROBLEMS[status]


def _argument(argument: Any) -> Any:
    if isinstance(argument, Memory):
        return ctypes.c_void_p(argument.address)
    return ctypes.c_void_p(int(argument)) if isinstance(argument, np.uint64) else ctypes.c_int(int(argument))


@functools.cache
def _compiled(source: str, folder: str) -> str:
    text = SHIM + source + ENTRIES
    name = Path(folder) / f"kernel_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    name.with_suffix(".cpp").write_text(text, encoding="utf-8")
    library = str(name.with_suffix(".so"))
    warnings = ["-Wall", "-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE"]
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", *warnings, "-shared", "-fPIC"]
    subprocess.run(["g++", *flags, str(name.with_suffix(".cpp")), "-o", library], check=True)
    return library
