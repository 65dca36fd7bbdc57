"""Fixtures of the tests of training: one thread, and runs to compare with."""

from collections.abc import Callable, Iterator

import pytest
import torch

from tests.training.resumed_runs import CASES, run_to_the_end, weights


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Weights of several processes are compared to the bit, and another number of threads rounds differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """The final weights of a case, by name; each is run once."""
    finished: dict[str, bytes] = {}

    def weights_of(name: str) -> bytes:
        if name not in finished:
            out = tmp_path_factory.mktemp(name)
            assert run_to_the_end(CASES[name], out, save_steps=0) == 0
            finished[name] = weights(out)
        return finished[name]

    return weights_of
