"""What the C library keeps of the memory that a process has freed."""

import ctypes


def trim_heap() -> None:
    """Let glibc give all freed memory back to the kernel.

    Of a model that was freed it keeps more than half. A no-op where the C library is another one.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
