"""The gradient of a step is that of the mean of its samples, however they are divided."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from hf_transfer.data.batches import EpochSampler
from tests.training.divided_steps import CASES, ON_ONE_PROCESS, ON_TWO_PROCESSES, Case, flat, trained
from tests.training.launched import two_forks

NAMES = list(CASES)


def assert_equal(gradient: Tensor, expected: Tensor) -> None:
    """Relative to the norm: single numbers may be almost zero."""
    assert (gradient - expected).norm() <= 1e-6 * expected.norm()


@pytest.fixture(scope="module")
def undivided() -> dict[str, tuple[Tensor, float]]:
    """The gradient of one batch on one process, and its loss, by the name of the case."""
    computed = {}
    for name, case in CASES.items():
        (gradients,), loss = trained(case, 100, 1)
        computed[name] = flat(gradients), loss
    return computed


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    file = tmp_path_factory.mktemp("two") / "gradients.safetensors"
    ended = two_forks(Path(__file__).with_name("divided_steps.py"), str(file))
    assert ended.returncode == 0, ended.output[-3000:]
    return load_file(file)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("division", ON_ONE_PROCESS[1:])
def test_the_gradient_does_not_depend_on_the_batches_of_a_step(
    name: str, division: tuple[int, int], undivided: dict[str, tuple[Tensor, float]]
) -> None:
    (gradients,), loss = trained(CASES[name], *division)
    expected, expected_loss = undivided[name]
    assert_equal(flat(gradients), expected)
    assert loss == pytest.approx(expected_loss, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("division", ON_TWO_PROCESSES)
def test_the_gradient_does_not_depend_on_the_processes(
    name: str, division: tuple[int, int], undivided: dict[str, tuple[Tensor, float]],
    of_two_processes: dict[str, Tensor],
) -> None:  # fmt: skip
    """Also if one of them has samples a second time, because there are not enough to fill its last batch."""
    *gradient, loss = of_two_processes[f"{name} {division}"].split([len(undivided[name][0]), 1])
    assert_equal(gradient[0], undivided[name][0])
    assert loss.item() == pytest.approx(undivided[name][1], rel=1e-6)


@pytest.mark.parametrize("name", ["classes", "labels", "numbers"])
@pytest.mark.parametrize(("samples", "division"), [(36, (4, 8)), (33, (8, 4)), (40, (16, 2))])
def test_the_last_step_of_an_epoch_is_the_mean_of_its_own_samples(
    name: str, samples: int, division: tuple[int, int]
) -> None:
    """It has fewer batches than the others, or a batch that is not full."""
    divided, loss = trained(CASES[name], *division, samples=samples)
    whole, expected_loss = trained(CASES[name], 32, 1, samples=samples)
    assert len(divided) == len(whole) == 2
    for gradients, expected in zip(divided, whole, strict=True):
        assert_equal(flat(gradients), flat(expected))
    assert loss == pytest.approx(expected_loss, rel=1e-6)


@pytest.mark.parametrize("batch", [0, 1, 2])
def test_a_batch_without_samples_that_count_changes_nothing(batch: int) -> None:
    """Wherever it is in the step."""
    order = list(EpochSampler(12, seed=0))
    case = Case("classes", tuple(order[4 * batch : 4 * batch + 4]))
    (divided,), loss = trained(case, 4, 3, samples=12)
    (whole,), expected_loss = trained(case, 12, 1, samples=12)
    assert_equal(flat(divided), flat(whole))
    assert loss == pytest.approx(expected_loss, rel=1e-6)
