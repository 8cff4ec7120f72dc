"""Set up torch and the C library in processes that train."""

import contextlib
import ctypes
from collections.abc import Iterator

import torch

CPU_WORKER_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}
"""Environment variables with which a process must start if it will train on the CPU.

By default glibc gives each thread heaps of its own, of at most 64 MiB, and Ray trains in a thread: larger
blocks are taken from the kernel and returned in every step, whatever `prepare_process` sets.
"""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Constants of glibc's malloc.h."""


def prepare_process(threads: int, seed: int) -> None:
    """Seed torch, set its number of CPU threads, and make its arithmetic fast.

    Call it before torch has computed anything in this process.
    """
    torch.manual_seed(seed)
    # For the networks; similarities, which are divided by a temperature, ask for float32 (losses.similarity).
    torch.set_float32_matmul_precision("high")
    torch.set_num_threads(threads)
    # The optimiser's moments of weights that seldom get a gradient, such as rare tokens, decay to denormal
    # numbers, on which a CPU is many times slower. Set before torch starts its threads, which inherit it.
    torch.set_flush_denormal(True)
    if not torch.cuda.is_available():
        # Despite its name it also applies to the CPU. There, the backward pass of flash attention takes
        # several times as long as plain products for the short sequences of small models, and is no faster
        # for long ones.
        torch.backends.cuda.enable_flash_sdp(False)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let glibc reuse large blocks instead of handing them back to the kernel.

    Every training step on the CPU frees and takes the same hundreds of MiB, and the page faults of fresh
    blocks cost more than a tenth of its time. Does nothing with another C library.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


@contextlib.contextmanager
def settings_restored() -> Iterator[None]:
    """Restore afterwards what `prepare_process` sets for all of a process that goes on with other work.

    That is torch's random state, its number of threads and its precision. Only the flushing of denormal
    numbers and the C library's memory stay as they were set: nobody can ask for their former values.
    """
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    precision, flash = torch.get_float32_matmul_precision(), torch.backends.cuda.flash_sdp_enabled()
    try:
        yield
    finally:
        torch.set_rng_state(state)
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
        torch.backends.cuda.enable_flash_sdp(flash)
