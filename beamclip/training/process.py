"""What the processes of a training ask of torch and of the C library."""

import ctypes

import torch

CPU_WORKER_ENVIRONMENT = {"MALLOC_ARENA_MAX": "1"}
"""To be there when a process starts that will train on the CPU.

By default glibc gives a thread blocks of its own of at most 64 MiB, and Ray trains in a thread: what is
larger is taken from the kernel and handed back in every step, whatever `prepare_process` says.
"""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""


def prepare_process(threads: int, seed: int) -> None:
    """Seed torch, give it so many threads, and set what makes its arithmetic fast.

    Call it before torch has done anything.
    """
    torch.manual_seed(seed)
    # For the networks; what is divided by a temperature asks for float32 itself (losses.similarity).
    torch.set_float32_matmul_precision("high")
    torch.set_num_threads(threads)
    # Moments of weights that seldom get a gradient, such as rare tokens', fade into denormal numbers, with
    # which a CPU is many times slower. Set before there are threads, which take it over from this one.
    torch.set_flush_denormal(True)
    if not torch.cuda.is_available():
        # Named after CUDA, it also decides for the CPU, whose backward pass of flash attention takes several
        # times that of plain products for the short sequences of small models, and no less for long ones.
        torch.backends.cuda.enable_flash_sdp(False)
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let glibc reuse large blocks instead of handing them back to the kernel.

    Every step of a training on the CPU frees and takes the same hundreds of MiB; the page faults of taking
    them anew cost more than a tenth of its time. A no-op where the C library is another one.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
