"""A script for two processes, of which one has a bad sample, and both read late whether a step was finite.

Each writes `RANK.json` into a folder: its error, and whether weights and moments stayed as they were.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hf_transfer.errors import UserError
from hf_transfer.strategies.freezing import FullFineTuning
from hf_transfer.training import guard
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.sharding import is_sharded, whole
from tests.training.toy_task import Rows, fit_loaders, loaders_of, settings, vit


def main(folder: Path) -> None:
    """Train until the bad sample comes."""
    states: list[list[Tensor]] = []
    take_step = torch.optim.AdamW.step

    def step(self: Any, *arguments: Any, **more: Any) -> Any:
        result = take_step(self, *arguments, **more)
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        values = [*parameters, *(value for one in parameters for value in self.state[one].values())]
        states.append([whole(value.detach()).clone() for value in values])
        return result

    torch.optim.AdamW.step = step  # type: ignore[method-assign]
    setattr(guard, "reads_at_once", lambda _: False)  # noqa: B010
    rows, error = Rows(32), ""
    rows.pixels[17, 0, 3, 3] = float("nan")
    with start_accelerator(settings()) as accelerator:
        model, groups = vit()
        loaders = loaders_of(accelerator, rows, Rows(10, seed=1), 2)
        try:
            fit_loaders(model, FullFineTuning(), groups, loaders, settings(), accelerator)
        except UserError as refused:
            error = str(refused)
        result = {
            "sharded": is_sharded(accelerator), "error": error,
            "unchanged": all(map(torch.equal, states[-2], states[-1])),
            "finite": all(bool(value.isfinite().all()) for value in states[-1]),
        }  # fmt: skip
        (folder / f"{accelerator.process_index}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
