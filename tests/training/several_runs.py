"""A script for two processes: two runs with different precision, one after the other.

It writes their precisions into a file of a folder.
"""

import sys
from pathlib import Path

import torch

from hf_transfer.training.devices import start_accelerator
from tests.training.toy_task import settings


def main(folder: Path) -> None:
    """Start both, and let the processes communicate in each."""
    precisions = []
    for bf16 in (True, False):
        with start_accelerator(settings(bf16=bf16)) as accelerator:
            assert accelerator.num_processes == 2
            ranks = accelerator.gather(torch.tensor([accelerator.process_index]))
            assert ranks.tolist() == [0, 1]
            precisions.append(accelerator.mixed_precision)
            is_main = accelerator.is_main_process
    if is_main:
        (folder / "precisions").write_text(" ".join(precisions))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
