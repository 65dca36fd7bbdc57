"""Two machines: network namespaces that are connected by one link, with a process of the run on each."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_transfer.checkpoints.checkpoint import Checkpoints
from tests.conftest import REPOSITORY
from tests.training.launched import two_forks
from tests.training.resumed_runs import weights

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("killed_run.py")
ADDRESSES = ("10.77.31.1", "10.77.31.2")
PORT = "29531"
LONGEST_SECONDS = 240.0
Run = subprocess.Popen[str]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[str, str]]:
    """Names of two network namespaces, each with its own loopback and one end of a link."""
    first, second = (f"hosts-{os.getpid()}-{number}" for number in (1, 2))
    created = []
    try:
        for name in (first, second):
            ip("netns", "add", name)
            created.append(name)
        ip("link", "add", "end1", "netns", first, "type", "veth", "peer", "name", "end2", "netns", second)
        for name, end, address in zip((first, second), ("end1", "end2"), ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", end)
            for link in (end, "lo"):
                ip("-n", name, "link", "set", link, "up")
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        pytest.skip(f"Network namespaces cannot be made here: {getattr(error, 'stderr', error)}")
    else:
        yield first, second
    finally:
        for name in created:
            ip("netns", "delete", name)


def started(hosts: tuple[str, str], *arguments: str) -> list[Run]:
    """Start the command of a run on both hosts."""
    environment = {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    torchrun = str(Path(sys.executable).parent / "torchrun")
    return [
        subprocess.Popen(
            [
                "ip", "netns", "exec", host, torchrun, "--nnodes", "2", "--nproc_per_node", "1", "--node_rank",
                str(rank), "--master_addr", ADDRESSES[0], "--master_port", PORT, str(SCRIPT), *arguments,
            ],
            cwd=REPOSITORY,
            env={**os.environ, **environment, "PYTHONPATH": str(REPOSITORY), "GLOO_SOCKET_IFNAME": f"end{rank + 1}"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank, host in enumerate(hosts)
    ]  # fmt: skip


def ended(runs: list[Run]) -> list[int]:
    """The exit codes of both; a process that hangs is an error."""
    codes = []
    try:
        for run in runs:
            output, _ = run.communicate(timeout=LONGEST_SECONDS)
            codes.append(run.returncode)
            print(output)
    finally:
        for run in runs:
            run.kill()
    return codes


def test_a_host_that_dies_ends_the_run_and_the_same_command_resumes_exactly(
    hosts: tuple[str, str], tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for out in (whole, killed):
        out.mkdir()
    assert two_forks(SCRIPT, "full", str(whole), "0", "0").returncode == 0
    start = time.perf_counter()
    codes = ended(started(hosts, "full", str(killed), "1", "4", "host"))
    assert codes == [1, -9]
    assert time.perf_counter() - start < LONGEST_SECONDS
    newest, notes = Checkpoints(killed / "checkpoints").newest()
    assert notes == []
    assert newest is not None
    assert newest.step == 2
    assert ended(started(hosts, "full", str(killed), "0", "0")) == [0, 0]
    assert weights(killed) == weights(whole)
