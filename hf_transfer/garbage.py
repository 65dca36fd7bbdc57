"""When Python looks for unreachable objects: not while libraries are imported, nor as a command ends.

Libraries such as torch and transformers make more than a million objects, nearly all of which stay until the process
ends. To look through them takes seconds of a command that answers for one picture, and frees nothing.
"""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def none_collected() -> Iterator[None]:
    """Inside, where libraries are imported, no garbage is collected; later collections leave out what was made here."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def skip_last_collection() -> None:
    """As this process ends, memory goes back to the system at once: no garbage is collected before.

    For commands alone: a program of somebody else may wait for finalizers of its own.
    """
    atexit.register(gc.freeze)
