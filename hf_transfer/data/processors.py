"""How many processors this process may use: what it is allowed, divided among the processes that share it."""

import os
from collections.abc import Mapping

ROWS_THAT_NEED_WORKERS = 2_000
MOST_WORKERS = 4


def allowed_processors() -> int:
    """The processors that the system lets this process use: by its affinity, and by the limits of its container."""
    from joblib import cpu_count

    return int(cpu_count())


def sharing_processes(environment: Mapping[str, str] = os.environ) -> int:
    """How many processes of the run share the processors of this one: those that were started on this machine.

    Tasks of Slurm have processors of their own.

    Args:
        environment: the variables of a launcher.
    """
    here, tasks = (int(environment.get(name) or 1) for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE"))
    return max(1, here // max(1, tasks))


def workers_for(wanted: int | None, rows: int, environment: Mapping[str, str] = os.environ) -> int:
    """How many worker processes of this process decode the samples.

    All processes on a machine together have at most one for each processor, unless more are wanted of each.

    Args:
        wanted: of each process; None: for many rows up to four.
        rows: how many samples there are.
        environment: the variables of a launcher.
    """
    if wanted == 0 or (wanted is None and rows < ROWS_THAT_NEED_WORKERS):
        return 0
    sharing = sharing_processes(environment)
    if wanted is None:
        return min(MOST_WORKERS, max(1, allowed_processors() // sharing))
    return wanted if sharing == 1 else min(wanted, max(1, max(wanted, allowed_processors()) // sharing))
