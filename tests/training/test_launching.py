"""Environment variables of launchers: complete, left over, and of processes on CPUs."""

import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, PartialState

from hf_transfer.errors import UserError
from hf_transfer.training import launching
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.launching import check_launch, runs_on_cpus, waiting_explained
from tests.conftest import Recipe
from tests.training.launched import two_forks
from tests.training.toy_task import settings

COMPLETE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
LEFT_OVER = {
    "RANK, WORLD_SIZE and LOCAL_RANK without an address": (
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
        "MASTER_ADDR",
    ),
    "LOCAL_RANK alone": ({"LOCAL_RANK": "0"}, "RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT"),
    "a world without ranks": ({"WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "RANK, LOCAL_RANK"),
    "no rank on this machine": ({k: v for k, v in COMPLETE.items() if k != "LOCAL_RANK"}, "also LOCAL_RANK"),
    "no port": ({k: v for k, v in COMPLETE.items() if k != "MASTER_PORT"}, "also MASTER_PORT"),
    "an empty address": ({**COMPLETE, "MASTER_ADDR": ""}, "also MASTER_ADDR"),
    "a rank without a world": ({"RANK": "3"}, "a RANK that is smaller than WORLD_SIZE"),
    "a rank outside of its world": ({**COMPLETE, "RANK": "2"}, "a RANK that is smaller than WORLD_SIZE"),
    "an empty value": ({"LOCAL_RANK": ""}, "numbers"),
    "a word": ({"WORLD_SIZE": "auto"}, "numbers"),
}


@pytest.mark.parametrize("case", LEFT_OVER)
def test_variables_that_do_not_belong_together_are_named_with_the_command_that_removes_them(case: str) -> None:
    environment, expected = LEFT_OVER[case]
    with pytest.raises(UserError) as caught:
        check_launch(environment)
    first, second, third = str(caught.value).splitlines()
    assert expected in first
    assert all(f"{name}={value}" in second for name, value in environment.items())
    command = third.removeprefix("Do this:  ").partition(";")[0]
    assert "or, for several processes, start with torchrun or accelerate launch" in third
    # As the message says.
    removed = command.split()
    assert removed.pop(0) == "unset"
    check_launch({name: value for name, value in environment.items() if name not in removed})


@pytest.mark.parametrize(
    "environment",
    [
        {},
        COMPLETE,
        {**COMPLETE, "RANK": "0", "LOCAL_RANK": "0", "PMI_SIZE": "2"},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"RANK": "0"},
        {"LOCAL_RANK": "-1"},
        {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "PMI_SIZE": "1"},
        {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
    ],
)
def test_complete_variables_and_harmless_ones_are_accepted(environment: dict[str, str]) -> None:
    check_launch(environment)


@pytest.mark.parametrize("name", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"])
def test_processes_of_mpi_that_would_not_know_of_each_other_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name}=2: MPI has started several.*\n.*unset {name}$"):
        check_launch({name: "2"})


def test_one_process_says_after_a_while_that_it_waits_for_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "SECONDS_UNTIL_SAID", 0.01)
    written, latest = "", time.monotonic() + 240
    with waiting_explained(COMPLETE):
        while not written.endswith("\n") and time.monotonic() < latest:
            time.sleep(0.01)
            written += capsys.readouterr().err
    with waiting_explained({}):
        time.sleep(0.05)
    assert written + capsys.readouterr().err == (
        "Waiting for 2 processes at 127.0.0.1:29500, as the environment says. If there are no others, end this one and "
        "`unset RANK WORLD_SIZE LOCAL_RANK`.\n"
    )


@pytest.mark.parametrize(
    ("size", "accelerator", "expected"),
    [("1", None, False), ("2", None, True), ("2", "mps", True), ("2", "cuda", False), ("4", "xpu", False)],
)
def test_several_processes_without_gpus_share_their_work_on_cpus(
    size: str, accelerator: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = None if accelerator is None else torch.device(accelerator)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: device)
    assert runs_on_cpus({"WORLD_SIZE": size}) == expected


@pytest.mark.parametrize(("wanted", "expected"), [("true", True), ("1", True), ("False", False), ("0", False)])
def test_several_processes_beside_a_gpu_share_their_work_on_cpus_if_the_user_says_so(
    wanted: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    assert runs_on_cpus({"WORLD_SIZE": "2", "ACCELERATE_USE_CPU": wanted}) == expected


def test_a_program_that_has_connected_its_processes_itself_needs_no_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for kind in (AcceleratorState, PartialState):
        monkeypatch.setattr(kind, "_shared_state", {})
    PartialState(cpu=True)
    monkeypatch.setenv("LOCAL_RANK", "0")
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with start_accelerator(settings()) as accelerator:
        assert accelerator.num_processes == 1


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without a GPU")
def test_two_processes_on_cpus_need_no_further_variable(tmp_path: Path) -> None:
    """Without ACCELERATE_USE_CPU accelerate would make two runs of them."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, runpy\n"
        'os.environ.pop("ACCELERATE_USE_CPU", None)\n'
        f'runpy.run_path("{Path(__file__).with_name("several_runs.py")}", run_name="__main__")\n'
    )
    ended = two_forks(script, str(tmp_path))
    assert ended.returncode == 0, ended.output[-3000:]
    assert (tmp_path / "precisions").read_text() == "bf16 no"


def test_a_run_names_left_over_variables(vision: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything slow."""
    for kind in (AcceleratorState, PartialState):
        monkeypatch.setattr(kind, "_shared_state", {})
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv("RANK", raising=False)
    ended = vision()
    assert ended.code == 2
    assert "Do this:  unset LOCAL_RANK; or, for several processes, start with torchrun" in ended.err
