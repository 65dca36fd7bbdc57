"""The peak of a process's memory, and how malloc treats freed memory: during a run it is kept for the next batch.

By default glibc returns large blocks to the system as soon as they are freed. The next batch asks for them again, and
the kernel has to find, clear and map every page: on CPUs this can cost more than computing. A run keeps it only once
data are read: the memory of the short threads that read them would be kept, too.
"""

import ctypes
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

# Parameters of mallopt(3), from malloc.h.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
KEPT = {MMAP_MAX: 0, TRIM_THRESHOLD: -1}
# By default glibc adapts two thresholds to the largest block that a program has freed; setting any parameter ends that
# for good. So behind a run they are what they become at most (DEFAULT_MMAP_THRESHOLD_MAX in malloc.c, and twice that):
# with the values at which they start, each block of 128 KiB would be mapped and cleared again, as long as the process
# lives.
LARGEST_MMAP_THRESHOLD = (4 << 20) * ctypes.sizeof(ctypes.c_long)
ADAPTED = {MMAP_MAX: 65_536, MMAP_THRESHOLD: LARGEST_MMAP_THRESHOLD, TRIM_THRESHOLD: 2 * LARGEST_MMAP_THRESHOLD}
# Variables with which a user has chosen something himself.
CHOSEN_BY = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
TUNABLES = "GLIBC_TUNABLES"


class _Users:
    """The blocks in which freed memory is kept: the last one to end gives it back, in whatever order they end."""

    def __init__(self) -> None:
        self._lock, self._count = threading.Lock(), 0

    def enter(self) -> None:
        with self._lock:
            self._count += 1
            if self._count == 1:
                _set(KEPT)

    def leave(self) -> None:
        with self._lock:
            self._count -= 1
            if self._count == 0:
                _set(ADAPTED)
                ctypes.CDLL(None).malloc_trim(0)


_USERS = _Users()


@contextmanager
def freed_memory_kept(*, scarce: bool) -> Iterator[None]:
    """Inside, malloc keeps freed memory; at the end of the last such block, what is free is returned to the system.

    From then on malloc treats freed memory as in a program that has freed large blocks before. Loader processes that
    are started inside keep it, too. Blocks may be nested, and in several threads. Nothing happens where `description`
    says so.

    Args:
        scarce: whether memory may be full: then nothing happens either, since there are gaps in what is kept.
    """
    if scarce or _reason_against(os.environ) is not None:
        yield
        return
    _USERS.enter()
    try:
        yield
    finally:
        _USERS.leave()


def peak_bytes() -> int:
    """The peak of the resident memory of this process since it began, or since `peak_restarted`; 0 on Windows."""
    with suppress(OSError):
        # Not that of getrusage, which begins with the peak of the process that started this one.
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        if peak := re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE):
            return int(peak[1]) << 10
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_restarted() -> bool:
    """Begin to measure the peak anew; whether that is possible: on Linux, if it is allowed."""
    try:
        # See proc(5): 5 resets the peak of the resident memory.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def description(environment: Mapping[str, str] = os.environ) -> str:
    """What a run does about freed memory on this machine, in words."""
    reason = _reason_against(environment)
    return "freed memory is kept during a run (glibc)" if reason is None else f"left as it is: {reason}"


def _reason_against(environment: Mapping[str, str]) -> str | None:
    """Why malloc is left as it is; None: it is not."""
    try:
        is_glibc = bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (AttributeError, ValueError):
        is_glibc = False
    if not is_glibc:
        return "this system does not use glibc"
    chosen = [name for name in CHOSEN_BY if name in environment]
    if "glibc.malloc" in environment.get(TUNABLES, ""):
        chosen.append(TUNABLES)
    return f"{' and '.join(chosen)} set it" if chosen else None


def _set(values: Mapping[int, int]) -> None:
    for name, value in values.items():
        ctypes.CDLL(None).mallopt(name, value)
