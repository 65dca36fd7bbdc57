"""Worker processes of loaders: how they end, whatever happens, and messages for what goes wrong in them."""

import atexit
import errno
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hf_transfer.errors import UserError, user_error

# At the end of the process: seconds that its workers have to end by themselves.
SECONDS_TO_END = 1.0
# After a connection to a worker is lost: so long the system may take to report its death.
SECONDS_UNTIL_REPORTED = 0.5
LOST_CONNECTION = (ConnectionError, EOFError, FileNotFoundError)
# In the messages of torch and of the system.
SHARED_MEMORY = ("shared memory", "Bus error", "shm_open", "from file </torch_", "to file </torch_")
DOCKER = "in docker add --shm-size=8g (or --ipc=host) to `docker run`"
OPEN_FILES = ("Too many open files", "ancdata")
# How torch's message begins when it learns that a worker has died.
WORKER_DIED = "DataLoader worker"
# Where a message begins that a worker has sent, and where the message itself is in it.
FROM_WORKER, OF_USER_ERROR = "Caught UserError in DataLoader worker", "UserError: "


def end_workers(iterator: Any) -> None:
    """End the processes of an iterator over a loader; they are killed if they do not end when they are asked to.

    Args:
        iterator: what `iter` makes of a `torch.utils.data.DataLoader`; one without processes is left alone.
    """
    if not hasattr(iterator, "_shutdown_workers"):
        return
    # torch has no public way to end them: they would run until the last reference to the iterator is gone, and the
    # traceback of an error holds one.
    try:
        iterator._shutdown_workers()
    except RuntimeError as error:
        # torch raises it wherever the main process is when it learns of a worker's death: also here, where all of them
        # end anyway, and where another error of the same death may be on its way.
        if not str(error).startswith(WORKER_DIED):
            raise
    for worker in iterator._workers:
        if worker.is_alive():
            worker.kill()
        worker.join()


@cache
def end_workers_at_exit() -> None:
    """Make sure that this process can end although workers that ignore signals still run.

    `multiprocessing` sends daemonic children SIGTERM when their parent exits, and waits for them without a limit.
    """
    # Functions run in the opposite order: this one before that of multiprocessing, which is imported above.
    atexit.register(_end_children)


def _end_children() -> None:
    children = [child for child in multiprocessing.active_children() if child.daemon]
    for child in children:
        child.terminate()
    latest = time.monotonic() + SECONDS_TO_END
    for child in children:
        child.join(max(0.0, latest - time.monotonic()))
        child.kill()


@contextmanager
def explained_worker_failures() -> Iterator[None]:
    """Turn errors of loader workers that a person can fix into messages.

    Raises:
        UserError: a worker was killed, or it had no shared memory or too many open files, or it raised this error.
    """
    try:
        yield
    except (UserError, RuntimeError, OSError, EOFError) as error:
        if explained := worker_failure(error):
            raise explained from error
        raise


def worker_failure(error: BaseException, kept: Callable[[], str] = str) -> UserError | None:
    """The message for an error of loader workers; None for any other error.

    Args:
        error: as it was raised in the main process.
        kept: returns what the run can resume from, in a sentence; it may wait.
    """
    try:
        explained = _explained(error, kept)
        if explained is not None and isinstance(error, LOST_CONNECTION):
            # Else torch's error could come while this one is raised, and hide it.
            time.sleep(SECONDS_UNTIL_REPORTED)
    except RuntimeError as later:
        # torch raises it wherever the main process is when it learns of a worker's death: also here.
        return _explained(later, kept)
    return explained


def _explained(error: BaseException, kept: Callable[[], str]) -> UserError | None:
    text = str(error)
    if isinstance(error, UserError):
        return UserError(text.rpartition(OF_USER_ERROR)[2].strip()) if text.startswith(FROM_WORKER) else None
    fewer = "use fewer --dataloader_num_workers, or 0"
    if _lacks_semaphores(error) or (isinstance(error, RuntimeError) and any(sign in text for sign in SHARED_MEMORY)):
        return user_error(
            expected="enough shared memory (/dev/shm) for what loader workers send to the main process",
            found=_with(_last_line(text), kept),
            do=f"{fewer}; {DOCKER}",
        )
    if any(sign in text for sign in OPEN_FILES):
        return user_error(
            expected="enough open files for what loader workers send to the main process",
            found=_with(_last_line(text), kept),
            do=f"{fewer}, or raise the limit: ulimit -n 65536",
        )
    # A batch of a worker that has died in between cannot be fetched any more.
    lost = isinstance(error, LOST_CONNECTION) and _passed(error, "reductions.py")
    if lost or (isinstance(error, RuntimeError) and text.startswith(WORKER_DIED)):
        return user_error(
            expected="loader workers that run until the end",
            found=_with(f"one that has died ({text})" if lost else text.splitlines()[0], kept),
            do=f"run it again; if it happens again the host is out of memory, or of shared memory: {fewer}; {DOCKER}",
        )
    return None


def _lacks_semaphores(error: BaseException) -> bool:
    """Whether a queue to a worker could not be made: its semaphores are in shared memory, too."""
    refused = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.ENOSYS, errno.EACCES)
    return refused and _passed(error, "synchronize.py")


def _passed(error: BaseException, module: str) -> bool:
    """Whether an error comes from this module of a package `multiprocessing`: Python's or torch's."""
    frames = traceback.extract_tb(error.__traceback__)
    return any(Path(frame.filename).parts[-2:] == ("multiprocessing", module) for frame in frames)


def _last_line(text: str) -> str:
    """The message in a worker's traceback."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].partition("Error: ")[2] or lines[-1] if lines[0].startswith("Caught ") else lines[0]


def _with(found: str, kept: Callable[[], str]) -> str:
    found, sentence = found.rstrip(), kept()
    return f"{found} {sentence}".rstrip() if found.endswith(".") or not sentence else f"{found}; {sentence}"
