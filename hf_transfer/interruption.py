"""Signals that ask a run to end, and how it does so without losing what it has."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from types import FrameType

# What schedulers send before they end a job, and what Ctrl-C sends.
SIGNALS = tuple(
    number for name in ("SIGTERM", "SIGUSR1", "SIGINT") if (number := getattr(signal, name, None)) is not None
)
INTERRUPTED = 130
TERMINATED = 143


class Interrupted(KeyboardInterrupt):
    """The run was asked to end; whatever can be kept has been kept.

    It is a `KeyboardInterrupt`, since no library takes that for an error of its own, and loaders' workers know it.

    Args:
        number: of the signal.
        kept: what there is to go on from, in a sentence.
        saved: whether the run has a checkpoint of its own.
    """

    def __init__(self, number: int, kept: str = "", *, saved: bool = False) -> None:
        super().__init__(number, kept)
        self.number = number
        self.kept = kept
        self.saved = saved

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after any other signal, as a shell has it."""
        return INTERRUPTED if self.number == signal.SIGINT else TERMINATED

    def __str__(self) -> str:
        return f"{signal.Signals(self.number).name}. {self.kept}".rstrip()


class Request:
    """Whether the run has been asked to end, and by which signal (0: by none)."""

    def __init__(self) -> None:
        self.number = 0


@contextmanager
def ending_at_once() -> Iterator[None]:
    """A signal raises `Interrupted` wherever the run is; a second one ends the process."""

    def end(number: int, _: FrameType | None) -> None:
        _let_the_next_end_all()
        raise Interrupted(number)

    with _handled(end):
        yield


@contextmanager
def ending_when_asked() -> Iterator[Request]:
    """A signal is noted, for the run to look at when its state can be kept; a second Ctrl-C ends the process.

    One that came too late to be looked at is sent again at the end, to whoever handles signals then.
    """
    request = Request()

    def note(number: int, _: FrameType | None) -> None:
        request.number = number
        _let_the_next_end_all()

    with _handled(note):
        yield request
    if request.number:
        signal.raise_signal(request.number)


def _let_the_next_end_all() -> None:
    # Schedulers send the others more than once, and to each process of a group.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def _handled(handler: object) -> Iterator[None]:
    # Python lets no other thread do it, as when a run is part of a larger program.
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
    """For a loader's worker: the main process decides what becomes of the run, also if all were sent the signal."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def same_command(argv: Sequence[str] | None = None, without: Set[str] = frozenset()) -> str:
    """The command that started this process, as it is to be typed again.

    Args:
        argv: its words, this process's own if they are not given.
        without: settings to leave out, with their values.
    """
    words = _without(sys.argv if argv is None else argv, without)
    processes = os.environ.get("WORLD_SIZE", "1")
    if "TORCHELASTIC_RUN_ID" in os.environ and "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return shlex.join(["torchrun", "--nproc_per_node", os.environ.get("LOCAL_WORLD_SIZE", processes), *words])
    if "ACCELERATE_MIXED_PRECISION" in os.environ:
        return shlex.join(["accelerate", "launch", *words])
    return shlex.join(["python", *words])


def _without(words: Sequence[str], settings: Set[str]) -> list[str]:
    left, dropped = [], False
    for word in words:
        if word.startswith("--"):
            dropped = word.removeprefix("--").partition("=")[0] in settings
        if not dropped:
            left.append(word)
    return left
