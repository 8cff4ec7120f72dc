"""Give memory that a process has freed back to the kernel."""

import ctypes


def trim_heap() -> None:
    """Make glibc give all freed memory back to the kernel; a no-op with another C library.

    By itself, glibc keeps more than half of the memory of a model that was freed.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
