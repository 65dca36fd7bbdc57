"""A script for two processes: two runs with different precision, one after the other.

It writes their precisions into a file of a folder. The first process is late in closing connections.
"""

import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from hf_transfer.training.devices import start_accelerator
from tests.training.toy_task import settings


def main(folder: Path) -> None:
    """Start both, and let the processes communicate in each."""
    close = dist.destroy_process_group

    def close_late(group: dist.ProcessGroup | None = None) -> None:
        time.sleep(0.5 if os.environ["RANK"] == "0" else 0.0)
        close(group)

    dist.destroy_process_group = close_late
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
