"""Signals that interrupt a run, and how it ends without losing what it has computed."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from types import FrameType

# What schedulers send before they end a job, and what Ctrl-C sends.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))


class Interrupted(KeyboardInterrupt):
    """A signal interrupted the run; what can be saved has been saved.

    It is a `KeyboardInterrupt`, which libraries do not handle as an error, and which workers of loaders know.

    Args:
        number: of the signal.
        kept: what the run can resume from, in a sentence.
        saved: whether the run has written a checkpoint.

    Attributes:
        is_early: whether a choice between strategies had not begun yet; see `before_anything_is_kept`.
    """

    def __init__(self, number: int, kept: str = "", *, saved: bool = False) -> None:
        super().__init__(number, kept)
        self.number, self.kept, self.saved, self.is_early = number, kept, saved, False

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after any other signal, as in a shell."""
        return 130 if self.number == signal.SIGINT else 143

    def __str__(self) -> str:
        return f"{signal.Signals(self.number).name}. {self.kept}".rstrip()


@contextmanager
def before_anything_is_kept() -> Iterator[None]:
    """Inside, a choice between strategies is prepared: whoever resumes has to start over, as this run was to."""
    try:
        yield
    except Interrupted as interrupted:
        interrupted.is_early = True
        raise


class Request:
    """The signal that asked the run to end; 0: none did."""

    def __init__(self) -> None:
        self.number = 0


@contextmanager
def ending_at_once() -> Iterator[None]:
    """A signal raises `Interrupted` wherever the run is; a Ctrl-C after it ends the process."""

    def end(number: int, _: FrameType | None) -> None:
        _let_next_ctrl_c_end_the_process()
        raise Interrupted(number)

    with _handled(end):
        yield


@contextmanager
def ending_when_asked() -> Iterator[Request]:
    """A signal is recorded, and the run checks for it where its state can be saved; a second Ctrl-C ends the process.

    A recorded signal is raised again at the end, for the handlers that are then in place.
    """
    request = Request()

    def record(number: int, _: FrameType | None) -> None:
        request.number = number
        _let_next_ctrl_c_end_the_process()

    with _handled(record):
        yield request
    if request.number:
        signal.raise_signal(request.number)


def _let_next_ctrl_c_end_the_process() -> None:
    # Schedulers send the other signals more than once, and to each process of a group.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def _handled(handler: object) -> Iterator[None]:
    # Python allows this in the main thread only, and a run may be part of a larger program.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def ignore_signals(_: int) -> None:
    """For a loader's worker: the main process handles a signal that all processes of the run were sent."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def same_command(argv: Sequence[str] | None = None, without: Set[str] = frozenset()) -> str:
    """The command that started this process, to be typed again.

    Args:
        argv: its words; None: those of this process.
        without: settings to leave out, with their values.
    """
    words, dropped = [], False
    for word in sys.argv if argv is None else argv:
        if word.startswith("--"):
            dropped = word.removeprefix("--").partition("=")[0].replace("-", "_") in without
        if not dropped:
            words.append(word)
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        return shlex.join(["accelerate", "launch", *words])
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return shlex.join(["torchrun", "--nproc_per_node", os.environ["LOCAL_WORLD_SIZE"], *words])
    return shlex.join(["python", *words])
