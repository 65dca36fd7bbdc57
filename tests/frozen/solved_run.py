"""Run in two processes: heads for labels and for numbers; each process writes what it has to `RANK.json`."""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from hf_transfer.frozen import probe
from hf_transfer.targets.target import Target
from hf_transfer.training.devices import start_accelerator
from tests.frozen.solved_heads import options_of, passes_of
from tests.frozen.target_rows import LABELS, NUMBERS, label_rows, number_rows
from tests.training.toy_task import Rows, loaders_of, settings, tiny


def only_here(*_: Any, **__: Any) -> None:
    """In place of what only the main process may do."""
    raise RuntimeError("another process than the main one solves")


def main(folder: Path) -> None:
    """Solve both heads."""
    tasks: list[tuple[Target, Rows, Rows]] = [
        (LABELS, label_rows(30), label_rows(20, seed=1)),
        (NUMBERS, number_rows(30), number_rows(20, seed=1)),
    ]
    config = settings(cache_frozen="on", cache_dir=str(folder), per_device_eval_batch_size=4)
    with start_accelerator(config) as accelerator:
        results: dict[str, Any] = {"processes": accelerator.num_processes, "solved": []}
        for target, train, validation in tasks:
            model, *_ = tiny("vit")
            torch.manual_seed(0)
            model.set_submodule("classifier", nn.Linear(24, len(target.names)))
            loaders = loaders_of(accelerator, train, validation, 4, target=target)
            passes, options = passes_of(loaders, accelerator, config), options_of(loaders, config)
            with ExitStack() as stack:
                for name in () if accelerator.is_main_process else ("best_solution", "out_of_fold"):
                    stack.enter_context(patch.object(probe, name, only_here))
                head = probe.solve_head(model, "classifier", passes, options)
            assert head.held_out is not None
            name = type(target).__name__
            results["solved"].append(name)
            results[name] = {
                "weight": model.get_parameter("classifier.weight").tolist(),
                "outputs": head.held_out.outputs.tolist(),
                "targets": head.held_out.targets.tolist(),
                "row": {key: value for key, value in head.row.items() if "second" not in key},
            }
        (folder / f"{accelerator.process_index}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
