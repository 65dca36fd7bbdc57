"""What starts a recipe on many GPUs and machines: accelerate's configuration files, and a batch script for Slurm."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType

from tests.conftest import REPOSITORY

CONFIGS = sorted((REPOSITORY / "recipes/configs/accelerate").iterdir())
SLURM = REPOSITORY / "recipes/configs/slurm/train.sh"
# What srun, and what scontrol, is called with goes into a file; srun runs the tasks that it is given one by one.
SRUN = """#!/bin/bash
printf '%s\\n' "$@" > "$CALLS/srun"
highest=0
for task in 0 1; do
    while [[ $1 == --* ]]; do shift; done
    SLURM_NTASKS=4 SLURM_PROCID=$((2 + task)) SLURM_LOCALID=$task "$@"
    code=$?
    ((code > highest)) && highest=$code
done
exit $highest
"""
SCONTROL = """#!/bin/bash
echo "$*" >> "$CALLS/scontrol"
[[ $1 == show ]] && printf '%s\\n' host-7 host-9
exit 0
"""
RECIPE = """
import json, os, sys
wanted = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS")
with open(os.environ["CALLS"] + "/tasks", "a") as file:
    print(json.dumps([sys.argv[1:], {name: os.environ[name] for name in wanted}]), file=file)
sys.exit(int(os.environ["CODE"]))
"""


def launched(*flags: str) -> argparse.Namespace:
    """What `accelerate launch` makes of its flags."""
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args([*flags, "recipes/text.py"]))
    return arguments  # type: ignore[no-any-return]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_takes_each_configuration(path: Path) -> None:
    """It refuses unknown names at the top, and passes over those below `fsdp_config`."""
    config = load_config_from_file(str(path))
    known = vars(launch_command_parser().parse_args(["recipes/text.py"]))
    below: dict[str, Any] = config.fsdp_config
    assert below.keys() <= known.keys()
    assert path.name in path.read_text(), "the command that uses it"
    launch = launched("--config_file", str(path), "--machine_rank", "1")
    written = yaml.safe_load(path.read_text())
    assert launch.num_processes == written["num_processes"]
    assert launch.use_fsdp == (config.distributed_type == DistributedType.FSDP)
    assert launch.multi_gpu == (config.distributed_type == DistributedType.MULTI_GPU)
    assert {name: getattr(launch, name) for name in below} == below


def test_there_is_a_configuration_for_each_way_to_share_the_work() -> None:
    assert [path.stem for path in CONFIGS] == ["fsdp", "multi_gpu", "one_gpu", "two_hosts"]
    two = launched("--config_file", str(CONFIGS[3]), "--machine_rank", "1", "--main_process_ip", "10.0.0.7")
    assert (two.num_machines, two.machine_rank, two.main_process_ip, two.main_process_port) == (2, 1, "10.0.0.7", 29500)
    assert launched("--config_file", str(CONFIGS[1]), "--num_processes", "8").num_processes == 8


def submitted(folder: Path, code: int) -> tuple[subprocess.CompletedProcess[str], dict[str, list[str]]]:
    """The batch script on the first of two hosts, with a recipe that ends with `code`; and how it called whom."""
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    (folder / "recipe.py").write_text(RECIPE)
    (folder / "calls").mkdir()
    given = {
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "host-[7,9]",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_CPUS_PER_TASK": "3",
        "CALLS": str(folder / "calls"),
        "CODE": str(code),
        "PATH": f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = [str(shutil.which("bash")), str(SLURM), str(folder / "recipe.py"), "--seed", "1 2"]
    ended = subprocess.run(
        command, env={**os.environ, **given}, capture_output=True, text=True, timeout=240, check=False
    )
    return ended, {path.name: path.read_text().splitlines() for path in (folder / "calls").iterdir()}


def test_the_batch_script_is_bash() -> None:
    checked = subprocess.run(["bash", "-n", str(SLURM)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_the_batch_script_asks_for_a_signal_in_time_and_a_task_for_each_gpu() -> None:
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SLURM.read_text(), re.MULTILINE))
    assert re.fullmatch(r"SIGUSR1@\d{3}", asked["signal"])
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]
    assert asked.keys() >= {"requeue", "nodes", "time"}
    assert asked["open-mode"] == "append"


def test_srun_starts_every_process_and_tells_it_who_it_is(tmp_path: Path) -> None:
    """Without a launcher in between: a signal reaches the tasks of a step, and not their children."""
    ended, calls = submitted(tmp_path, 0)
    assert ended.returncode == 0, ended.stderr
    assert calls["srun"][:3] == ["--kill-on-bad-exit=1", "bash", "-c"]
    assert calls["scontrol"] == ["show hostnames host-[7,9]"]
    tasks = [json.loads(line) for line in calls["tasks"]]
    assert [flags for flags, _ in tasks] == [["--seed", "1 2"]] * 2
    shared = {
        "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "host-7", "MASTER_PORT": "24711",
        "OMP_NUM_THREADS": "3",
    }  # fmt: skip
    assert [environment for _, environment in tasks] == [
        {"RANK": str(2 + n), "LOCAL_RANK": str(n), **shared} for n in range(2)
    ]


@pytest.mark.parametrize(
    ("code", "requeued", "end"), [(143, True, 0), (138, True, 0), (0, False, 0), (1, False, 1), (2, False, 2)]
)
def test_a_run_that_has_saved_is_queued_again_and_one_that_failed_is_not(
    tmp_path: Path, code: int, requeued: bool, end: int
) -> None:
    ended, calls = submitted(tmp_path, code)
    assert ended.returncode == end
    assert ("requeue 4711" in calls["scontrol"]) == requeued
