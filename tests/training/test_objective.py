"""Cross-entropy against torch's own and against sums in float64."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from hf_transfer.data.batches import LabelledInputs
from hf_transfer.targets.classes import balanced_class_weights
from hf_transfer.targets.labels import LabelSets
from hf_transfer.targets.target import LossOptions
from hf_transfer.training.objective import Objective
from tests.training.toy_task import TARGET

CLASSES = 5
# Masked samples have a label, too, which must not matter.
LABELS = torch.tensor([0, 2, 3, 4, 4, 1, 1])
COUNTED = torch.tensor([True, False, True, True, False, True, True])
# How torch marks them.
IGNORED = torch.where(COUNTED, LABELS, -100)
WEIGHTS = torch.tensor([0.2, 3.0, 1.0, 0.7, 1.6])


def objective(smoothing: float = 0.0, weights: Tensor | None = None) -> Objective:
    return Objective(TARGET, LossOptions(smoothing, weights))


def some_logits(rows: int = 7) -> Tensor:
    return torch.randn(rows, CLASSES, generator=torch.Generator().manual_seed(0)).requires_grad_()


def some_shares(rows: int = 7) -> Tensor:
    shares = torch.rand(rows, CLASSES, generator=torch.Generator().manual_seed(1))
    return shares / shares.sum(-1, keepdim=True)


def everyone(rows: int = 7) -> Tensor:
    return torch.ones(rows, dtype=torch.bool)


def loss_and_gradient(loss_of: Any, *targets: Tensor) -> tuple[Tensor, Tensor]:
    logits = some_logits(len(targets[0]))
    loss = loss_of(logits, *targets)
    loss.backward()
    assert logits.grad is not None
    return loss.detach(), logits.grad


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_class_numbers_give_torchs_own_cross_entropy(smoothing: float, weights: Tensor | None) -> None:

    def expected(logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels, weights, ignore_index=-100, label_smoothing=smoothing)

    actual = loss_and_gradient(objective(smoothing, weights), LABELS, COUNTED)
    torch.testing.assert_close(actual, loss_and_gradient(expected, IGNORED))


def test_without_smoothing_or_weights_the_loss_is_the_plain_mean_to_the_bit() -> None:
    """The sum divided by the count: results of earlier versions depend on it."""

    def expected(logits: Tensor, labels: Tensor) -> Tensor:
        return cross_entropy(logits, labels, ignore_index=-100, reduction="sum") / (labels != -100).sum()

    actual = loss_and_gradient(objective(), LABELS, COUNTED)
    for value, expected_value in zip(actual, loss_and_gradient(expected, IGNORED), strict=True):
        assert torch.equal(value, expected_value)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_shares_of_a_single_class_give_the_loss_of_its_number(smoothing: float, weights: Tensor | None) -> None:
    shares = one_hot(LABELS, CLASSES).float() * COUNTED[:, None]
    loss_of = objective(smoothing, weights)
    torch.testing.assert_close(loss_and_gradient(loss_of, shares, COUNTED), loss_and_gradient(loss_of, LABELS, COUNTED))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_shares_are_weighted_sums_over_samples_and_classes(smoothing: float) -> None:
    """In numpy, with a masked row."""
    shares, counted = some_shares(), everyone()
    shares[2], counted[2] = 0, False
    logits = some_logits().detach().double().numpy()
    log_shares = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    total = weight = 0.0
    for row in (0, 1, 3, 4, 5, 6):
        for label in range(CLASSES):
            share = float(shares[row, label])
            smooth = (1 - smoothing) * share + smoothing / CLASSES
            total -= float(WEIGHTS[label]) * smooth * log_shares[row, label]
            weight += float(WEIGHTS[label]) * share
    loss = objective(smoothing, WEIGHTS)(some_logits(), shares, counted)
    assert loss.item() == pytest.approx(total / weight, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_shares_without_weights_give_torchs_own_cross_entropy(smoothing: float) -> None:
    loss = objective(smoothing)(some_logits(), some_shares(), everyone())
    torch.testing.assert_close(loss, cross_entropy(some_logits(), some_shares(), label_smoothing=smoothing))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("targets", [torch.full((3,), 2), torch.zeros(3, CLASSES)])
def test_a_batch_of_masked_samples_has_a_loss_and_a_gradient_of_zero(weights: Tensor | None, targets: Tensor) -> None:
    loss, gradient = loss_and_gradient(objective(0.1, weights), targets, ~everyone(3))
    assert loss.item() == 0
    assert not gradient.any()


@pytest.mark.parametrize("targets", [LABELS, some_shares() * COUNTED[:, None]])
def test_the_logits_of_a_masked_sample_do_not_matter(targets: Tensor) -> None:
    logits, others = some_logits(), some_logits()
    with torch.no_grad():
        others[~COUNTED] += 7
    loss_of = objective(0.1, WEIGHTS)
    assert torch.equal(loss_of(logits, targets, COUNTED), loss_of(others, targets, COUNTED))


def test_the_loss_of_one_sample_does_not_depend_on_the_weight_of_its_class() -> None:
    labels = torch.tensor([1])
    weighted = objective(0.0, WEIGHTS)(some_logits(1), labels, everyone(1))
    torch.testing.assert_close(weighted, objective()(some_logits(1), labels, everyone(1)))


def test_balanced_weights_let_every_class_count_the_same() -> None:
    labels = np.array([4, 0, 0, 4, 4, 4, 1, 4])
    weights = balanced_class_weights(labels, CLASSES)
    # Samples divided by the number of classes and by the samples of the class.
    assert weights[[0, 1, 4]].numpy() == pytest.approx([8 / (3 * 2), 8 / (3 * 1), 8 / (3 * 5)])
    assert weights.dtype == torch.float32
    assert weights[labels].mean().item() == pytest.approx(1)


def test_a_class_without_training_samples_has_a_weight_of_one() -> None:
    assert balanced_class_weights(np.array([0, 0, 2]), 4).tolist() == pytest.approx([0.75, 1, 1.5, 1])


def test_a_label_beyond_the_classes_is_a_bug() -> None:
    with pytest.raises(IndexError):
        balanced_class_weights(np.array([0, 3]), 3)


PARTS = [slice(0, 3), slice(3, 4), slice(4, 7)]
PRESENT = {
    "image_present": torch.tensor([True, True, False, True, False, True, True]),
    "text_present": torch.tensor([False, True, True, True, True, True, False]),
}


def a_batch(targets: Tensor, part: slice, *, twice: bool) -> LabelledInputs:
    """Some of the samples as they pass through the model; with R-Drop they are there twice."""
    batch = LabelledInputs(PRESENT, targets, COUNTED, torch.arange(7))
    inputs, *columns = ({name: value[part] for name, value in PRESENT.items()}, *(column[part] for column in batch[1:]))
    if twice:
        inputs = {name: value.repeat(2) for name, value in inputs.items()}
        columns = [torch.cat([column, column]) for column in columns]
    return LabelledInputs(inputs, *columns)


def gradients(objective: Objective, targets: Tensor, parts: list[slice]) -> Tensor:
    """Of the outputs of all heads and passes, for a step whose samples are divided."""
    outputs = torch.randn(3, 2, 7, CLASSES, generator=torch.Generator().manual_seed(2)).requires_grad_()
    twice = objective.rdrop_alpha > 0
    batches = [a_batch(targets, part, twice=twice) for part in parts]
    weights = torch.stack([objective.weights(batch) for batch in batches]).sum(0)
    for part, batch in zip(parts, batches, strict=True):
        heads = [head[:, part].flatten(0, 1) if twice else head[0, part] for head in outputs]
        output = SimpleNamespace(logits=heads[0], image_logits=heads[1], text_logits=heads[2])
        objective.of_output(output, batch, weights).backward()
    assert outputs.grad is not None
    return outputs.grad


@pytest.mark.parametrize("rdrop_alpha", [0.0, 0.7])
@pytest.mark.parametrize("options", [LossOptions(), LossOptions(0.1, WEIGHTS)])
@pytest.mark.parametrize("targets", [LABELS, some_shares() * COUNTED[:, None]])
def test_the_losses_of_batches_add_up_to_that_of_their_step(
    rdrop_alpha: float, options: LossOptions, targets: Tensor
) -> None:
    """With heads that see a part of the samples, two passes, weights, masks, mixed samples and unequal batches."""
    objective = Objective(TARGET, options, auxiliary_weight=0.3, rdrop_alpha=rdrop_alpha)
    whole = gradients(objective, targets, [slice(0, 7)])
    torch.testing.assert_close(gradients(objective, targets, PARTS), whole, rtol=1e-6, atol=1e-8)
    assert whole[1:].any()


@pytest.mark.parametrize("options", [LossOptions(), LossOptions(0.1, WEIGHTS), LossOptions(kind="asymmetric")])
def test_unknown_cells_of_labels_do_not_change_what_the_others_count(options: LossOptions) -> None:
    cells = torch.eye(CLASSES)[LABELS]
    cells[:3, 1:] = float("nan")
    objective = Objective(LabelSets(("a", "b", "c", "d", "e")), options)
    whole = gradients(objective, cells, [slice(0, 7)])
    torch.testing.assert_close(gradients(objective, cells, PARTS), whole, rtol=1e-6, atol=1e-8)
    assert not whole[0, 0, :3, 1:].any()
