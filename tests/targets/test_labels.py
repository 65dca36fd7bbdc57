"""Several labels for a sample: loss, metrics, thresholds, tables and answers against independent computations."""

from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, log_loss
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import BertConfig

from hf_transfer.errors import UserError
from hf_transfer.evaluation.results import judged
from hf_transfer.targets.labels import LabelSets
from hf_transfer.targets.table import target_of_model, write_settings
from hf_transfer.targets.target import LabelColumns, LossOptions

NAMES = ("ant", "bee", "cat")
TARGET = LabelSets(NAMES)
NAN = float("nan")
TRUTH = torch.tensor([[1, 0, 0], [0, 0, 0], [1, 1, NAN], [NAN, 0, 1], [0, 1, 1]])
COUNTED = torch.tensor([True, True, True, True, False])
OPTIONS = LossOptions()
Cells = npt.NDArray[np.float32]


def some_outputs(rows: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(rows, len(NAMES), generator=torch.Generator().manual_seed(seed))


def some_samples(rows: int = 80, seed: int = 0) -> tuple[Tensor, Cells]:
    """Outputs that say something of the labels, of which the last is rare."""
    generator = np.random.default_rng(seed)
    truth = (generator.random((rows, 3)) < [0.5, 0.3, 0.05]).astype(np.float32)
    return torch.from_numpy(truth * 1.5 + generator.normal(size=truth.shape) - 1).float(), truth


def test_the_loss_is_torchs_binary_cross_entropy_of_the_known_cells() -> None:
    sums = TARGET.loss(some_outputs(), TRUTH, COUNTED, OPTIONS)
    known = COUNTED[:, None] & ~TRUTH.isnan()
    expected = binary_cross_entropy_with_logits(some_outputs()[known], TRUTH[known], reduction="sum")
    assert sums.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert sums.weight.item() == 10


def test_neither_masked_samples_nor_unknown_cells_have_a_gradient() -> None:
    """A gradient of NaN would end the run."""
    outputs = some_outputs().requires_grad_()
    TARGET.loss(outputs, TRUTH, COUNTED, OPTIONS).total.backward()
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()
    assert torch.equal(outputs.grad != 0, COUNTED[:, None] & ~TRUTH.isnan())


def test_smoothing_moves_a_cell_toward_one_half() -> None:
    smooth = TARGET.loss(some_outputs(), TRUTH, COUNTED, LossOptions(smoothing=0.2)).total
    shifted = TARGET.loss(some_outputs(), TRUTH * 0.8 + 0.1, COUNTED, OPTIONS).total
    assert smooth.item() == pytest.approx(shifted.item(), rel=1e-6)


def test_positives_of_a_rare_label_count_more_up_to_a_limit() -> None:
    """As many times as there are negatives for each of them, at most twenty times."""
    values = np.zeros((100, 3), dtype=np.float32)
    values[:50, 0], values[:10, 1], values[0, 2] = 1, 1, 1
    values[50:, 1] = np.nan
    weights = TARGET.loss_weights(values, balanced=True)
    assert weights is not None
    assert weights.tolist() == [1, 4, 20]
    assert TARGET.loss_weights(values, balanced=False) is None
    of_torch = binary_cross_entropy_with_logits(
        some_outputs(), TRUTH.nan_to_num(), pos_weight=weights, reduction="none"
    )
    known = COUNTED[:, None] & ~TRUTH.isnan()
    sums = TARGET.loss(some_outputs(), TRUTH, COUNTED, LossOptions(weights=weights))
    assert sums.total.item() == pytest.approx(of_torch[known].sum().item(), rel=1e-6)
    assert sums.weight.item() == 10


def test_training_starts_with_the_shares_of_the_labels_as_probabilities() -> None:
    layers = [nn.Linear(4, 3), nn.Linear(4, 3, bias=False)]
    weights = [layer.weight.detach().clone() for layer in layers]
    train = np.array([[1, 0, 0], [1, 1, 0], [1, NAN, 0], [0, 0, 0]], dtype=np.float32)
    TARGET.start(layers, train)
    assert layers[0].bias.sigmoid().tolist() == pytest.approx([3.5 / 5, 1.5 / 4, 0.5 / 5], rel=1e-5)
    assert all(torch.equal(layer.weight, before) for layer, before in zip(layers, weights, strict=True))


def test_the_asymmetric_loss_is_that_of_its_paper() -> None:
    """Written out, with a margin of 0.05 and a power of 4 for negatives; easy negatives have no loss at all."""
    outputs = torch.cat([some_outputs(), torch.tensor([[-4.0, 9.0, 0.0]])]).double()
    truth = torch.cat([TRUTH, torch.tensor([[0.0, 0.0, 1.0]])])
    counted = torch.cat([COUNTED, torch.tensor([True])])
    total = 0.0
    for probability, label, counts in zip(
        outputs.sigmoid().flatten().tolist(), truth.flatten().tolist(), counted.repeat_interleave(3), strict=True
    ):
        shifted = max(probability - 0.05, 0.0)
        if counts and label == 1:
            total -= np.log(probability)
        elif counts and label == 0:
            total -= shifted**4 * np.log(1 - shifted)
    sums = TARGET.loss(outputs, truth, counted, LossOptions(kind="asymmetric"))
    assert sums.total.item() == pytest.approx(total, rel=1e-6)
    easy = TARGET.loss(
        torch.full((1, 3), -6.0), torch.zeros(1, 3), torch.tensor([True]), LossOptions(kind="asymmetric")
    )
    assert easy.total.item() == 0


def test_mixed_cells_keep_what_is_not_known_and_masked_samples_are_zero() -> None:
    shares = TARGET.mixed(TRUTH, COUNTED)
    assert torch.equal(shares[4], torch.zeros(3))
    assert torch.equal(shares[:4].nan_to_num(7), TRUTH[:4].nan_to_num(7))
    half = (shares + shares.flip(0)) / 2
    # The middle sample is its own partner; a cell is known if it is in both.
    sums = TARGET.loss(some_outputs(), half, COUNTED, OPTIONS)
    assert sums.weight.item() == int((COUNTED[:, None] & ~half.isnan()).sum())


def test_the_metrics_are_those_of_scikit_learn() -> None:
    outputs, truth = some_samples()
    metrics = TARGET.evaluate(outputs, truth)
    chosen = (outputs > 0).numpy()
    assert metrics["map"] == pytest.approx(average_precision_score(truth, outputs.numpy(), average="macro"))
    for average in ("micro", "macro"):
        expected = f1_score(truth, chosen, average=average, zero_division=np.nan)
        assert metrics[f"f1_{average}"] == pytest.approx(expected)
    assert metrics["f1_samples"] == pytest.approx(f1_score(truth, chosen, average="samples", zero_division=1.0))
    assert metrics["subset_accuracy"] == pytest.approx((chosen == truth).all(1).mean())
    cells = log_loss(truth.ravel(), outputs.double().sigmoid().numpy().ravel())
    assert metrics["loss"] == pytest.approx(cells, rel=1e-6)
    assert metrics.keys() == {*(one.name for one in TARGET.metrics), "loss"}
    assert TARGET.evaluate(outputs, truth, "map").keys() == {"map", "loss"}
    assert TARGET.sample_scores(outputs, truth).mean() == pytest.approx(metrics["f1_samples"])


def test_thresholds_are_chosen_for_f1_and_are_used_from_then_on() -> None:
    outputs, truth = some_samples(400)
    chosen = TARGET.calibrated(outputs, truth)
    assert len(chosen.thresholds) == 3
    assert chosen.evaluate(outputs, truth)["f1_macro"] > TARGET.evaluate(outputs, truth)["f1_macro"]
    assert chosen.evaluate(outputs, truth)["map"] == TARGET.evaluate(outputs, truth)["map"]
    expected = outputs.double().sigmoid().numpy() >= np.asarray(chosen.thresholds)
    assert np.array_equal(chosen.predicted(outputs), expected)
    (note,) = chosen.describe_calibration(400)
    assert "400 samples that were held out" in note


def test_thresholds_and_separator_are_saved_with_the_model() -> None:
    target = LabelSets(NAMES, "|", (0.25, 0.5, 0.125))
    of_other_tasks = {"thresholds": [9.0], "prediction_interval": {"samples": 3}, "num_labels": 7}
    config = BertConfig.from_dict(of_other_tasks)
    write_settings(config, target)
    again = BertConfig.from_dict(config.to_dict())
    assert target_of_model(again) == target
    assert (again.problem_type, again.num_labels) == ("multi_label_classification", 3)
    assert not hasattr(again, "prediction_interval")
    # Before they are chosen, and for models of others.
    write_settings(config, TARGET)
    assert not hasattr(config, "thresholds")
    assert target_of_model(config) == TARGET


def test_the_baseline_says_of_each_label_what_most_training_samples_have() -> None:
    train = np.array([[1, 0, 0], [1, 1, 0], [1, 0, np.nan], [0, 0, 1]], dtype=np.float32)
    test = np.array([[1, 0, 0], [0, 0, 1], [1, 1, 0]], dtype=np.float32)
    name, metrics = judged(LabelSets(NAMES, thresholds=(0.01, 0.01, 0.01)).constant(train), test)
    always = np.array([[1, 0, 0]] * 3)
    assert name == "always the majority of each label"
    assert metrics["f1_micro"] == pytest.approx(f1_score(test, always, average="micro"))
    assert metrics["map"] == pytest.approx(np.mean([2 / 3, 1 / 3, 1 / 3]))


def test_the_table_has_a_row_for_each_label() -> None:
    outputs, truth = some_samples()
    target = LabelSets(NAMES, thresholds=(0.5, 0.25, 0.125))
    (table,), pictures = target.details(outputs, truth)
    assert pictures == []
    assert [row["label"] for row in table.rows] == list(NAMES)
    assert [row["threshold"] for row in table.rows] == [0.5, 0.25, 0.125]
    assert [row["samples"] for row in table.rows] == truth.sum(0).tolist()
    assert {*table.columns} == {*table.rows[0]}
    first = outputs[:, 0].double().sigmoid().numpy() >= 0.5
    assert table.rows[0]["f1"] == pytest.approx(f1_score(truth[:, 0], first))


def test_answers_are_probabilities_and_decisions_those_that_reach_their_thresholds() -> None:
    target = LabelSets(NAMES, thresholds=(0.9, 0.5, 0.2))
    outputs = torch.logit(torch.tensor([[0.8, 0.6, 0.25], [0.1, 0.2, 0.1]]))
    first, second = target.answers(outputs, 2)
    assert [name for name, _ in first] == ["ant", "bee"]
    assert [share for _, share in first] == pytest.approx([0.8, 0.6])
    assert len(second) == 2
    assert target.decisions(outputs) == [{"labels": ["bee", "cat"]}, {"labels": []}]


def test_a_true_value_is_shown_by_its_names() -> None:
    target = LabelSets(NAMES, "|")
    assert target.shown(np.array([1.0, 0.0, 1.0])) == "ant| cat"
    assert target.shown(np.array([0.0, 0.0, NAN])) == "no label"
    assert target.truth(np.array([0.0, 1.0, NAN])) == ["bee"]


def values(**splits: Any) -> dict[str, Any]:
    return {name: np.asarray(rows, dtype=np.float32) for name, rows in splits.items()}


SOME: list[list[float]] = [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]


@pytest.mark.parametrize(
    ("target", "given", "expected", "found"),
    [
        (LabelSets(("ant",)), values(train=[[1], [0]]), "at least 2 labels", "only ant"),
        (TARGET, values(train=SOME[:1]), "at least 2 training samples", "1"),
        (TARGET, values(train=[[1, 0, 0], [1, 0, 0]]), "a label that some samples have", "all training samples"),
        (TARGET, values(train=[[0, 0, 0], [0, 0, 0]]), "a label that some samples have", "no training samples"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(target: LabelSets, given: Any, expected: str, found: str) -> None:
    with pytest.raises(UserError) as error:
        target.check(given, splits_to_cut=0)
    first, second, _ = str(error.value).splitlines()
    assert expected in first
    assert found in second


def test_samples_without_labels_unknown_cells_and_lacking_labels_are_reported() -> None:
    TARGET.check(values(train=[*SOME, [0, 0, 0]]), splits_to_cut=0)
    notes = TARGET.notes(values(train=[*SOME, [0, 0, 0], [0, 0, NAN]], validation=SOME[:2], test=SOME))
    assert notes == [
        "Samples without any label: 2 in train.",
        "Labels not known, which count nowhere: 1 in train.",
        "In validation no sample has the label cat.",
    ]


def test_a_sample_belongs_to_the_stratum_of_its_rarest_label() -> None:
    rows = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1], [1, 1, 0], [0, 0, 0]], dtype=np.float32)
    assert TARGET.strata(rows).tolist() == [0, 1, 2, 1, 3]


def test_a_finished_model_reads_labels_by_its_own_names() -> None:
    rows = datasets.Dataset.from_dict({"tags": [["cat"], [], ["bee", "cat"]]})
    columns = LabelColumns(("tags",), outputs=NAMES[::-1])
    read, cells = LabelSets.read({"test": rows}, columns)
    assert read.names == list(NAMES[::-1])
    assert cells["test"].tolist() == [[1, 0, 0], [0, 0, 0], [1, 1, 0]]
    with pytest.raises(UserError, match=r"'fox' in 1 rows, first in row 0 of split 'test'"):
        LabelSets.read({"test": datasets.Dataset.from_dict({"tags": [["fox"]]})}, columns)
