"""A script for torchrun or forks: one of the resumed cases, in which one process is killed in a chosen step.

Arguments: the case, the output folder, the number of the process, the step (0: no kill), and `host` if torchrun, which
has started the process, is to be killed with it.
"""

import os
import signal
import sys
import time
from itertools import count
from pathlib import Path
from typing import Any

import torch

from hf_transfer.settings.parsing import run_recipe
from hf_transfer.settings.run import RunConfig
from tests.training.killed_children import die
from tests.training.resumed_runs import CASES


def main(name: str, out: Path, process: int, step: int, *whole_host: str) -> None:
    """Train, or die."""
    take_step, steps = torch.optim.AdamW.step, count(1)

    def step_or_die(self: Any, *arguments: Any, **more: Any) -> Any:
        if next(steps) == step and torch.distributed.get_rank() == process:
            (out / "died").write_text(str(time.time()))
            if whole_host:
                os.kill(os.getppid(), signal.SIGKILL)
            die(written=True)
        return take_step(self, *arguments, **more)

    torch.optim.AdamW.step = step_or_die  # type: ignore[method-assign]

    def train(_: RunConfig) -> None:
        CASES[name].run(out)

    config = CASES[name].config(out)
    flags = [f"--{key}={config.flat()[key]}" for key in ("model_name_or_path", "dataset_name", "output_dir")]
    run_recipe(train, type(config), flags)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:])
