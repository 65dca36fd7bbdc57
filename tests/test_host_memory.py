"""During a run, memory that torch frees is used again; afterwards it belongs to the system."""

import json
import os
import subprocess
import sys
from typing import NamedTuple

import pytest

from hf_transfer import host_memory
from tests.conftest import REPOSITORY

glibc = pytest.mark.skipif(host_memory.description({}).startswith("left"), reason="this system does not use glibc")
# Takes 100 MiB and frees them; prints how many MiB malloc then has free, and how many it has in maps of their own while
# they are in use, inside and behind the block; and how often pages are then mapped for blocks of 8 MiB, one at a time.
CHILD = """
import contextlib, ctypes, json, resource, sys, threading
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

@contextlib.contextmanager
def nested():
    with freed_memory_kept(scarce=False):
        for scarce in (False, True):
            with freed_memory_kept(scarce=scarce):
                pass
        yield

@contextlib.contextmanager
def overlapping():
    entered, ended = threading.Event(), threading.Event()
    def other():
        with freed_memory_kept(scarce=False):
            entered.set()
            ended.wait()
    thread = threading.Thread(target=other)
    with freed_memory_kept(scarce=False):
        thread.start()
        entered.wait()
    yield
    ended.set()
    thread.join()

blocks = {
    "plain": contextlib.nullcontext, "nested": nested, "overlapping": overlapping,
    "kept": lambda: freed_memory_kept(scarce=False), "scarce": lambda: freed_memory_kept(scarce=True),
}
with blocks[sys.argv[1]]():
    inside = used()
behind = used()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    torch.ones(2 << 20)
print(json.dumps([inside, behind, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before]))
"""
# Of 50 blocks of 8 MiB, if all are mapped anew.
ALL_PAGES = 50 * (8 << 20) // os.sysconf("SC_PAGE_SIZE")


class Measured(NamedTuple):
    """What malloc has in a process.

    Attributes:
        inside: MiB that are free, and MiB in maps of their own, inside the block.
        behind: the same behind it.
        mapped_again: how many pages are mapped behind it for blocks that are freed one after the other.
    """

    inside: list[int]
    behind: list[int]
    mapped_again: int


def measured(how: str, **variables: str) -> Measured:
    """Memory of a process with this kind of block and these variables."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    ended = subprocess.run(
        [sys.executable, "-c", CHILD, how], capture_output=True, text=True, check=True, cwd=REPOSITORY, env=environment
    )
    return Measured(*json.loads(ended.stdout))


@glibc
@pytest.mark.parametrize("how", ["kept", "nested", "overlapping"])
def test_freed_memory_is_kept_until_the_last_run_ends_and_then_returned(how: str) -> None:
    (free, mapped), (_, mapped_behind), _ = measured(how)
    assert free >= 100
    assert mapped < 100
    assert mapped_behind >= 100


@glibc
@pytest.mark.parametrize("how", ["plain", "scarce"])
def test_freed_memory_is_returned_at_once_where_it_is_not_kept(how: str) -> None:
    for free, mapped in measured(how)[:2]:
        assert free < 100 <= mapped


@glibc
def test_behind_a_run_blocks_are_used_again_as_in_any_program() -> None:
    for how in ("plain", "scarce", "kept"):
        assert measured(how).mapped_again < ALL_PAGES / 5


@glibc
@pytest.mark.parametrize(
    "variables", [{"MALLOC_TRIM_THRESHOLD_": "1000000"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=1000"}]
)
def test_what_a_user_has_chosen_for_malloc_is_kept(variables: dict[str, str]) -> None:
    name = next(iter(variables))
    assert host_memory.description(variables) == f"left as it is: {name} set it"
    free, mapped = measured("kept", **variables).inside
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
