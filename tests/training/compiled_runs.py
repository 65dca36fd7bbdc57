"""A script for two processes: a training with layers that are compiled, and one without.

The main process writes `plain.safetensors` and `compiled.safetensors` into a folder.
"""

import sys
from pathlib import Path
from typing import Any

from hf_transfer.strategies.freezing import FullFineTuning
from hf_transfer.training.devices import start_accelerator
from tests.training.resumed_runs import save_weights
from tests.training.toy_task import Rows, fit_loaders, loaders_of, settings, vit

ARMS: dict[str, dict[str, Any]] = {"plain": {}, "compiled": {"torch_compile": True, "torch_compile_backend": "eager"}}


def main(folder: Path) -> None:
    """Both in one start, which takes most of the time."""
    with start_accelerator(settings()) as accelerator:
        for name, more in ARMS.items():
            model, groups = vit()
            loaders = loaders_of(accelerator, Rows(24), Rows(10, seed=1), 4)
            fitted = fit_loaders(model, FullFineTuning(), groups, loaders, settings(**more), accelerator)
            if accelerator.is_main_process:
                save_weights(fitted.model, folder / f"{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
