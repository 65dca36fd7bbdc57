"""During a run, memory that torch frees is used again; afterwards it belongs to the system."""

import json
import os
import subprocess
import sys

import pytest

from hf_transfer import host_memory
from tests.conftest import REPOSITORY

glibc = pytest.mark.skipif(host_memory.description({}).startswith("left"), reason="this system does not use glibc")
# Takes 100 MiB and frees them; prints how many MiB malloc then has free, and how many it has in maps of their own while
# they are in use, inside and behind the block.
CHILD = """
import contextlib, ctypes, json, sys
import torch
from hf_transfer.host_memory import freed_memory_kept

class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
    )]

def state():
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Mallinfo2
    return mallinfo2()

def used():
    block = torch.ones(25 << 20)
    mapped = state().hblkhd
    del block
    return [state().fordblks >> 20, mapped >> 20]

with freed_memory_kept(scarce=sys.argv[1] == "scarce") if sys.argv[1] != "plain" else contextlib.nullcontext():
    inside = used()
print(json.dumps([inside, used()]))
"""


def measured(how: str, **variables: str) -> list[list[int]]:
    """MiB that are free, and MiB in maps of their own, inside and behind the block, with these variables."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, how], capture_output=True, text=True, check=True, cwd=REPOSITORY, env=environment
    )
    figures: list[list[int]] = json.loads(ended.stdout)
    return figures


@glibc
def test_freed_memory_is_kept_during_a_run_and_returned_at_the_end() -> None:
    (free, mapped), (_, mapped_behind) = measured("kept")
    assert free >= 100
    assert mapped < 100
    assert mapped_behind >= 100
    for how in ("plain", "scarce"):
        for free, mapped in measured(how):
            assert free < 100 <= mapped


@glibc
@pytest.mark.parametrize(
    "variables", [{"MALLOC_TRIM_THRESHOLD_": "1000000"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=1000"}]
)
def test_what_a_user_has_chosen_for_malloc_is_kept(variables: dict[str, str]) -> None:
    name = next(iter(variables))
    assert host_memory.description(variables) == f"left as it is: {name} set it"
    (free, mapped), _ = measured("kept", **variables)
    assert free < 100 <= mapped


def test_other_systems_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Alpine Linux, whose library does not know the name."""

    def unknown(_: str) -> str:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "confstr", unknown)
    assert host_memory.description({}) == "left as it is: this system does not use glibc"
    with host_memory.freed_memory_kept(scarce=False):
        pass


TAKE_300_MIB = "import mmap; block = mmap.mmap(-1, 300 << 20); block.write(bytes(300 << 20)); block.close()"


def printed(code: str) -> int:
    """What a process of its own prints."""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    return int(ended.stdout)


@pytest.mark.skipif(not host_memory.peak_restarted(), reason="the peak cannot be restarted here")
def test_the_peak_of_memory_can_be_measured_anew() -> None:
    code = "from hf_transfer.host_memory import peak_bytes, peak_restarted; before = peak_bytes(); peak_restarted()"
    assert printed(f"{TAKE_300_MIB}; {code}; print(before - peak_bytes())") > 250 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="measured from /proc")
def test_the_peak_of_a_process_is_not_that_of_the_one_that_started_it() -> None:
    child = "from hf_transfer.host_memory import peak_bytes; print(peak_bytes())"
    assert (
        printed(f"{TAKE_300_MIB}; import subprocess, sys; subprocess.run([sys.executable, '-c', '{child}'])")
        < 200 << 20
    )
