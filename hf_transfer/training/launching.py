"""What a launcher has told this process of the others, in environment variables; and errors that all of them share."""

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from hf_transfer.errors import SharedError, UserError, user_error

# What torchrun and accelerate launch set for each process: the numbers, and where the first one listens.
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# By these accelerate knows the processes that MPI has started.
SIZES_OF_MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
# Later than a slow start, and long before somebody gives up.
SECONDS_UNTIL_SAID = 30.0


class Processes(Protocol):
    """The processes of a run, by the names of accelerate's `Accelerator`, which is one of these."""

    @property
    def is_main_process(self) -> bool:
        """Whether this is the process that writes and prints."""

    def wait_for_everyone(self) -> None:
        """Return when all processes have come here."""

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on the main process alone."""


class _OnlyProcess:
    """The one process of a run, which waits for nobody."""

    is_main_process = True
    print = staticmethod(print)

    def wait_for_everyone(self) -> None: ...


ONLY_PROCESS: Processes = _OnlyProcess()


@contextmanager
def main_process_first(processes: Processes) -> Iterator[None]:
    """In it, the other processes wait until the main one is through. A user's error in one of them ends all.

    Otherwise the others would wait for that process, and report a lost connection instead of its error.

    Args:
        processes: of the run.

    Raises:
        SharedError: another process has raised an error.
    """
    if processes is ONLY_PROCESS:
        yield
        return
    if not processes.is_main_process:
        _share(None)
    try:
        yield
    except UserError as error:
        _share(error)
        raise
    _share(None)
    if processes.is_main_process:
        _share(None)


def _share(error: UserError | None) -> None:
    """Tell all processes of an error, or that there is none; all of them come here."""
    from accelerate.utils import gather_object

    shared = gather_object([None if error is None else str(error)])
    elsewhere = [message for message in shared if message is not None]
    if error is None and elsewhere:
        raise SharedError(elsewhere[0])


def may_be_one_of_several(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process may share its run with others: a launcher has started it, or its program uses accelerate.

    Args:
        environment: the variables of a launcher.

    Raises:
        UserError: some are missing, are no numbers or contradict each other.
    """
    # A program that has imported accelerate may have connected its processes itself.
    if "accelerate" in sys.modules:
        return True
    check_launch(environment)
    return int(environment.get("WORLD_SIZE", "1")) > 1


def check_launch(environment: Mapping[str, str] = os.environ) -> None:
    """Refuse variables of a launcher that do not belong together, before accelerate waits for what they announce.

    Args:
        environment: the variables.

    Raises:
        UserError: some are missing, are no numbers or contradict each other.
    """
    given = {name: environment[name] for name in NUMBERS if name in environment}
    try:
        numbers = {name: int(value) for name, value in given.items()}
    except ValueError:
        raise _left_over(environment, "numbers") from None
    # With LOCAL_RANK alone, or a size, accelerate connects to other processes; -1 stands for none.
    rank, size = numbers.get("RANK", 0), numbers.get("WORLD_SIZE", 1)
    launched = numbers.get("LOCAL_RANK", -1) >= 0 or size > 1
    if launched and (missing := [name for name in NEEDED if not environment.get(name)]):
        raise _left_over(environment, f"also {', '.join(missing)}")
    if not -1 <= rank < size:
        raise _left_over(environment, "a RANK that is smaller than WORLD_SIZE")
    by_mpi = [name for name in SIZES_OF_MPI if environment.get(name, "").isdecimal() and int(environment[name]) > 1]
    if by_mpi and not launched:
        raise user_error(
            expected="one process, or several that torchrun or accelerate launch has started",
            found=f"{by_mpi[0]}={environment[by_mpi[0]]}: MPI has started several, each of which would be a run of its "
            "own",
            do=f"start with torchrun or accelerate launch; for one process: unset {' '.join(by_mpi)}",
        )


def runs_on_cpus(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether several processes share their work on CPUs, which accelerate does only if it is told to.

    Args:
        environment: the variables of a launcher, and `ACCELERATE_USE_CPU`, by which a user may ask for CPUs.
    """
    import torch
    from accelerate.utils import str_to_bool

    if int(environment.get("WORLD_SIZE", "1")) == 1:
        return False
    device = torch.accelerator.current_accelerator(check_available=True)
    # Processes cannot communicate from Apple's GPUs.
    needs_cpus = device is None or device.type == "mps"
    return needs_cpus or bool(str_to_bool(environment.get("ACCELERATE_USE_CPU", "false")))


@contextmanager
def waiting_explained(environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """While this process waits for others: after a while, say for which, and what to do if there are none."""

    def explain() -> None:
        where = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
        print(
            f"Waiting for {environment['WORLD_SIZE']} processes at {where}, as the environment says. If there are no "
            f"others, end this one and `{_unset(environment)}`.",
            file=sys.stderr, flush=True,
        )  # fmt: skip

    if not all(environment.get(name) for name in NEEDED) or environment["WORLD_SIZE"] == "1":
        yield
        return
    timer = threading.Timer(SECONDS_UNTIL_SAID, explain)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _left_over(environment: Mapping[str, str], expected: str) -> UserError:
    shown = ", ".join(
        f"{name}={environment[name]}" for name in (*NUMBERS, "MASTER_ADDR", "MASTER_PORT") if name in environment
    )
    return user_error(
        expected=f"none of a launcher's variables in the environment, or {expected}",
        found=f"{shown}: another program or service has left them",
        do=f"{_unset(environment)}; or, for several processes, start with torchrun or accelerate launch",
    )


def _unset(environment: Mapping[str, str]) -> str:
    return f"unset {' '.join(name for name in NUMBERS if name in environment)}"
