"""Cross-entropy against torch's own and against sums written out in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from hf_transfer.data.inputs import MASKED
from hf_transfer.training.objective import Objective, balanced_class_weights

CLASSES = 5
LABELS = torch.tensor([0, MASKED, 3, 4, MASKED, 1, 1])
WEIGHTS = torch.tensor([0.2, 3.0, 1.0, 0.7, 1.6])


def some_logits(rows: int = 7) -> Tensor:
    return torch.randn(rows, CLASSES, generator=torch.Generator().manual_seed(0)).requires_grad_()


def some_shares(rows: int = 7) -> Tensor:
    shares = torch.rand(rows, CLASSES, generator=torch.Generator().manual_seed(1))
    return shares / shares.sum(-1, keepdim=True)


def loss_and_gradient(objective: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = some_logits(len(targets))
    loss = objective(logits, targets)
    loss.backward()
    assert logits.grad is not None
    return loss.detach(), logits.grad


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_class_numbers_give_torchs_own_cross_entropy(smoothing: float, weights: Tensor | None) -> None:

    def expected(logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels, weights, ignore_index=MASKED, label_smoothing=smoothing)

    found = loss_and_gradient(Objective(smoothing, weights), LABELS)
    torch.testing.assert_close(found, loss_and_gradient(expected, LABELS))


def test_without_smoothing_or_weights_the_loss_is_the_plain_mean_to_the_bit() -> None:
    """The sum over the count: how the loop computed it before there was an objective."""

    def expected(logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels, ignore_index=MASKED, reduction="sum") / (labels != MASKED).sum()

    for found, wanted in zip(loss_and_gradient(Objective(), LABELS), loss_and_gradient(expected, LABELS), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_shares_that_name_one_class_are_worth_its_number(smoothing: float, weights: Tensor | None) -> None:
    shares = one_hot(LABELS.clamp_min(0), CLASSES).float() * (LABELS != MASKED)[:, None]
    objective = Objective(smoothing, weights)
    torch.testing.assert_close(loss_and_gradient(objective, shares), loss_and_gradient(objective, LABELS))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_shares_are_weighted_sums_over_samples_and_classes(smoothing: float) -> None:
    """Written out in numpy, with a masked row."""
    shares = some_shares()
    shares[2] = 0
    logits = some_logits().detach().double().numpy()
    log_shares = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    total = weight = 0.0
    for row in (0, 1, 3, 4, 5, 6):
        for label in range(CLASSES):
            share = float(shares[row, label])
            smooth = (1 - smoothing) * share + smoothing / CLASSES
            total -= float(WEIGHTS[label]) * smooth * log_shares[row, label]
            weight += float(WEIGHTS[label]) * share
    assert Objective(smoothing, WEIGHTS)(some_logits(), shares).item() == pytest.approx(total / weight, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_shares_without_weights_give_torchs_own_cross_entropy(smoothing: float) -> None:
    found = Objective(smoothing)(some_logits(), some_shares())
    torch.testing.assert_close(found, cross_entropy(some_logits(), some_shares(), label_smoothing=smoothing))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("targets", [torch.full((3,), MASKED), torch.zeros(3, CLASSES)])
def test_a_batch_of_masked_samples_alone_has_no_loss_and_teaches_nothing(
    weights: Tensor | None, targets: Tensor
) -> None:
    loss, gradient = loss_and_gradient(Objective(0.1, weights), targets)
    assert loss.item() == 0
    assert not gradient.any()


@pytest.mark.parametrize("targets", [LABELS, some_shares() * (LABELS != MASKED)[:, None]])
def test_a_masked_samples_logits_do_not_matter(targets: Tensor) -> None:
    logits, others = some_logits(), some_logits()
    with torch.no_grad():
        others[LABELS == MASKED] += 7
    objective = Objective(0.1, WEIGHTS)
    assert torch.equal(objective(logits, targets), objective(others, targets))


def test_one_sample_counts_alike_whatever_its_class_weighs() -> None:
    labels = torch.tensor([1])
    torch.testing.assert_close(Objective(0.0, WEIGHTS)(some_logits(1), labels), Objective()(some_logits(1), labels))


def test_balanced_weights_are_scikit_learns() -> None:
    labels = np.array([4, 0, 0, 4, 4, 4, 1, 4])
    found = balanced_class_weights(labels, CLASSES)
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 4]), y=labels)
    assert found[[0, 1, 4]].numpy() == pytest.approx(expected)
    assert found.dtype == torch.float32
    assert found[labels].mean().item() == pytest.approx(1)


def test_a_class_that_training_lacks_weighs_one() -> None:
    assert balanced_class_weights(np.array([0, 0, 2]), 4).tolist() == pytest.approx([0.75, 1, 1.5, 1])


def test_masked_samples_do_not_enter_the_balance() -> None:
    labels = np.array([0, MASKED, 0, 3, MASKED])
    assert torch.equal(balanced_class_weights(labels, 4), balanced_class_weights(np.array([0, 0, 3]), 4))


def test_a_label_beyond_the_classes_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="beyond the 3 classes"):
        balanced_class_weights(np.array([0, 3]), 3)
