"""What all solvers have in common."""

import pytest
import torch
from torch import Tensor

from hf_transfer.frozen.solvers import LABELS, LOGISTIC, RIDGE, SOLVERS, SQUARED_HINGE, Problem


@pytest.mark.parametrize("name", [LOGISTIC, SQUARED_HINGE, LABELS, RIDGE])
def test_a_solution_on_other_samples_knows_nothing_of_the_samples_that_were_left_out(name: str) -> None:
    """With random targets, more features than samples and weak regularisation, heads learn samples by heart.

    A search that began at the solution for all samples would end there, where the left-out samples are right, too.
    """
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 200, generator=generator)
    truth = torch.randn(60, 3, generator=generator)
    targets = {RIDGE: truth.double(), LABELS: (truth > 0).float()}.get(name, truth.argmax(1))
    inside = torch.arange(60) % 5 == 0

    def problem(rows: Tensor) -> Problem:
        return SOLVERS[name](
            lambda: iter([(features[rows], targets[rows])]), 3, intercept=True, balanced=False, copies=1
        )

    everything = torch.ones(60, dtype=torch.bool)
    *_, solution = problem(everything).path(rough=True)
    others = problem(~inside).near(problem(everything).sharpened(solution))
    outputs = features.double() @ others.weight.T + others.bias
    right = (outputs > 0) == (truth > 0) if name == LABELS else outputs.argmax(1) == truth.argmax(1)
    assert right[inside].double().mean() < 0.75
    assert right[~inside].double().mean() > 0.95
