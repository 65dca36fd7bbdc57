"""Features that hardly vary: labels and numbers do not rest on them."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from hf_transfer.frozen.label_classifier import LabelProblem
from hf_transfer.frozen.ridge import RidgeProblem
from hf_transfer.frozen.standardised import LEAST_SPREAD, Blocks, Standardised

# Of the last feature, for the others 1.
NARROW = 1e-4


def features() -> Tensor:
    """Five that vary alike, and one that hardly varies."""
    plain = torch.randn(200, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return plain * torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, NARROW])


def blocks_of(targets: Callable[[Tensor], Tensor]) -> Blocks:
    def blocks() -> Iterator[tuple[Tensor, Tensor]]:
        yield features(), targets(features() / features().std(0))

    return blocks


def labels(varied: Tensor) -> Tensor:
    """A label that all features show alike."""
    return (varied.sum(1, keepdim=True) > 0).float()


def numbers(varied: Tensor) -> Tensor:
    return varied.sum(1, keepdim=True)


def weights_of_labels() -> Tensor:
    (solution,) = LabelProblem(blocks_of(labels), 1, intercept=True).path([1e-2])
    return solution.weight[0].abs()


def weights_of_numbers() -> Tensor:
    (solution,) = RidgeProblem(blocks_of(numbers), 1, intercept=True).path([1e-2])
    return solution.weight[0].abs()


@pytest.mark.parametrize("weights", [weights_of_labels, weights_of_numbers])
def test_a_feature_that_hardly_varies_gets_no_huge_weight(weights: Callable[[], Tensor]) -> None:
    """Else a small change of the layers below would change the outputs a lot: its weight would be 10,000 times."""
    *others, narrow = weights().tolist()
    assert narrow < max(others) / LEAST_SPREAD


def test_its_spread_counts_as_a_share_of_the_median() -> None:
    narrow = Standardised(blocks_of(numbers), centred=True, see=lambda _: None, prepare=lambda targets: targets)
    floored = Standardised(
        blocks_of(numbers), centred=True, see=lambda _: None, prepare=lambda targets: targets, least_spread=LEAST_SPREAD
    )
    assert floored.spread[:-1].tolist() == narrow.spread[:-1].tolist()
    assert floored.spread[-1].item() == pytest.approx(LEAST_SPREAD * float(narrow.spread.median()))
    assert narrow.spread[-1].item() == pytest.approx(NARROW, rel=0.2)
