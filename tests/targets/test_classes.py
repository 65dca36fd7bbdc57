"""One class for each sample: loss, metrics, tables and answers against independent computations."""

from typing import Any

import datasets
import numpy as np
import pytest
import torch
from scipy.special import log_softmax, rel_entr
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss, precision_recall_fscore_support
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import BertConfig

from hf_transfer.errors import UserError
from hf_transfer.evaluation.results import judged
from hf_transfer.targets.classes import Classes, balanced_class_weights, most_confused
from hf_transfer.targets.table import TARGETS, target_of, target_of_model
from hf_transfer.targets.target import LabelColumns, LossOptions, LossSums

NAMES = ("ant", "bee", "cat", "dog", "eel")
TARGET = Classes(NAMES)
COLUMN = LabelColumns(("label",))
NUMBERS = torch.tensor([0, 2, 3, 4, 2, 1, 1])
COUNTED = torch.tensor([True, False, True, True, False, True, True])
WEIGHTS = torch.tensor([0.2, 3.0, 1.0, 0.7, 1.6])
OPTIONS = [LossOptions(smoothing, weights) for smoothing in (0.0, 0.1) for weights in (None, WEIGHTS)]


def some_outputs(rows: int = 7, seed: int = 0) -> Tensor:
    return torch.randn(rows, len(NAMES), generator=torch.Generator().manual_seed(seed))


def some_shares(rows: int = 7) -> Tensor:
    shares = torch.rand(rows, len(NAMES), generator=torch.Generator().manual_seed(1))
    return shares / shares.sum(-1, keepdim=True)


def written_out(outputs: Tensor, shares: Tensor, options: LossOptions) -> tuple[float, float]:
    """The sums over samples and classes, in float64; a masked sample has no shares."""
    log_shares, total, weight = log_softmax(outputs.double().numpy(), axis=-1), 0.0, 0.0
    weights = torch.ones(len(NAMES)) if options.weights is None else options.weights
    for row, sample in enumerate(shares.tolist()):
        for number, share in enumerate(sample):
            smooth = (1 - options.smoothing) * share + options.smoothing * sum(sample) / len(NAMES)
            total -= float(weights[number]) * smooth * log_shares[row, number]
            weight += float(weights[number]) * share
    return total, weight


def one_hot(numbers: Tensor, counted: Tensor) -> Tensor:
    return torch.eye(len(NAMES))[numbers] * counted[:, None]


def assert_sums(sums: LossSums, expected: tuple[float, float]) -> None:
    assert (sums.total.item(), float(sums.weight)) == pytest.approx(expected, rel=1e-5)
    assert sums.total.shape == sums.weight.shape == ()


@pytest.mark.parametrize("options", OPTIONS)
def test_the_loss_of_class_numbers_is_the_sum_that_is_written_out(options: LossOptions) -> None:
    outputs = some_outputs()
    sums = TARGET.loss(outputs, NUMBERS, COUNTED, options)
    assert_sums(sums, written_out(outputs, one_hot(NUMBERS, COUNTED), options))


@pytest.mark.parametrize("options", OPTIONS)
def test_the_loss_of_shares_is_the_sum_that_is_written_out(options: LossOptions) -> None:
    outputs, shares = some_outputs(), some_shares() * COUNTED[:, None]
    assert_sums(TARGET.loss(outputs, shares, COUNTED, options), written_out(outputs, shares, options))


@pytest.mark.parametrize("options", OPTIONS)
def test_class_numbers_have_the_loss_of_their_shares(options: LossOptions) -> None:
    """`mixed` makes shares of them, which may then be mixed."""
    shares = TARGET.mixed(NUMBERS, COUNTED)
    assert torch.equal(shares, one_hot(NUMBERS, COUNTED))
    outputs = some_outputs()
    of_shares, of_numbers = (TARGET.loss(outputs, targets, COUNTED, options) for targets in (shares, NUMBERS))
    assert_sums(of_shares, (of_numbers.total.item(), float(of_numbers.weight)))


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_mean_over_counted_samples_is_torchs_cross_entropy(smoothing: float, weights: Tensor | None) -> None:
    sums = TARGET.loss(some_outputs(), NUMBERS, COUNTED, LossOptions(smoothing, weights))
    expected = cross_entropy(some_outputs()[COUNTED], NUMBERS[COUNTED], weights, label_smoothing=smoothing)
    assert (sums.total / sums.weight).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("masked", [0, 4, 10_000, -1])
def test_neither_output_nor_target_of_a_masked_sample_matters(options: LossOptions, masked: int) -> None:
    """Its target is any number, also one that no class has."""
    outputs, changed = some_outputs().requires_grad_(), some_outputs().requires_grad_()
    with torch.no_grad():
        changed[~COUNTED] += 7
    sums = TARGET.loss(outputs, NUMBERS, COUNTED, options)
    other = TARGET.loss(changed, NUMBERS.where(COUNTED, masked), COUNTED, options)
    assert torch.equal(sums.total, other.total)
    assert torch.equal(sums.weight, other.weight)
    sums.total.backward()
    assert outputs.grad is not None
    assert outputs.grad[COUNTED].any(dim=1).all()
    assert not outputs.grad[~COUNTED].any()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("targets", [torch.zeros(3, dtype=torch.int64), torch.zeros(3, len(NAMES))])
def test_masked_samples_alone_have_neither_loss_nor_weight(options: LossOptions, targets: Tensor) -> None:
    sums = TARGET.loss(some_outputs(3), targets, torch.zeros(3, dtype=torch.bool), options)
    assert (sums.total.item(), float(sums.weight)) == (0, 0)


def test_balanced_weights_let_every_class_count_the_same() -> None:
    numbers = np.array([4, 0, 0, 4, 4, 4, 1, 4])
    weights = TARGET.loss_weights(numbers, balanced=True)
    assert weights is not None
    # Samples divided by the number of classes and by the samples of the class.
    assert weights[[0, 1, 4]].numpy() == pytest.approx([8 / (3 * 2), 8 / (3 * 1), 8 / (3 * 5)])
    assert weights.dtype == torch.float32
    assert weights[numbers].mean().item() == pytest.approx(1)
    assert TARGET.loss_weights(numbers, balanced=False) is None


def test_a_class_that_training_lacks_weighs_one() -> None:
    assert balanced_class_weights(np.array([0, 0, 2]), 4).tolist() == pytest.approx([0.75, 1, 1.5, 1])


def test_a_class_number_beyond_the_classes_is_a_bug() -> None:
    with pytest.raises(IndexError):
        balanced_class_weights(np.array([0, 3]), 3)


def test_the_disagreement_of_two_passes_is_the_mean_of_both_kullback_leibler_divergences() -> None:
    """By scipy, added up over the samples that count."""
    outputs, counted = some_outputs(8), torch.tensor([True, False, True, True])
    first, second = outputs.double().softmax(-1).numpy().reshape(2, 4, -1)
    by_sample = (rel_entr(first, second) + rel_entr(second, first)).sum(-1) / 2
    disagreement = TARGET.disagreement(outputs, counted.repeat(2))
    assert disagreement.item() == pytest.approx(by_sample[counted.numpy()].sum(), rel=1e-5)
    assert TARGET.disagreement(outputs, torch.zeros(8, dtype=torch.bool)).item() == 0
    assert TARGET.disagreement(some_outputs(4).repeat(2, 1), torch.ones(8, dtype=torch.bool)).item() == 0


def predicted_samples(rows: int = 60, classes: int = 5, seed: int = 0) -> tuple[Tensor, Any, Any]:
    """Outputs, true and predicted class numbers; of five classes, the last never occurs."""
    numbers = np.random.default_rng(seed).integers(0, classes - 1, rows)
    outputs = some_outputs(rows, seed) + 1.5 * torch.eye(classes)[numbers]
    outputs[:, classes - 1] = -9
    return outputs, numbers, outputs.argmax(-1).numpy()


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_scikit_learns(seed: int) -> None:
    outputs, numbers, predicted = predicted_samples(seed=seed)
    metrics = TARGET.evaluate(outputs, numbers)
    assert metrics.keys() == {"accuracy", "f1_macro", "loss"}
    assert metrics["accuracy"] == pytest.approx(accuracy_score(numbers, predicted))
    assert metrics["f1_macro"] == pytest.approx(f1_score(numbers, predicted, average="macro"))
    probabilities = outputs.double().softmax(-1).numpy()
    assert metrics["loss"] == pytest.approx(log_loss(numbers, probabilities, labels=range(5)), rel=1e-5)


def test_a_metric_that_is_not_asked_for_is_left_out_where_it_takes_time() -> None:
    outputs, numbers, _ = predicted_samples()
    metrics = TARGET.evaluate(outputs, numbers)
    assert TARGET.evaluate(outputs, numbers, "accuracy") == {name: metrics[name] for name in ("accuracy", "loss")}
    assert TARGET.evaluate(outputs, numbers, "loss") == {name: metrics[name] for name in ("accuracy", "loss")}
    assert TARGET.evaluate(outputs, numbers, "f1_macro") == metrics


def test_macro_f1_counts_classes_that_occur_on_either_side() -> None:
    """A class that is predicted and never true has an F1 of 0; one that neither is counts not at all."""
    outputs = torch.eye(5)[[0, 1, 2]]
    numbers = np.array([0, 1, 1])
    assert TARGET.evaluate(outputs, numbers)["f1_macro"] == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_the_mean_of_the_sample_scores_is_the_accuracy() -> None:
    outputs, numbers, predicted = predicted_samples()
    scores = TARGET.sample_scores(outputs, numbers)
    assert scores.tolist() == (predicted == numbers).tolist()
    assert scores.mean() == pytest.approx(TARGET.evaluate(outputs, numbers)["accuracy"])


def test_intervals_contain_their_metrics() -> None:
    outputs, numbers, _ = predicted_samples()
    metrics, intervals = TARGET.evaluate(outputs, numbers), TARGET.intervals(outputs, numbers)
    assert intervals.keys() == {"accuracy", "f1_macro"}
    for name, (low, high) in intervals.items():
        assert 0 < low < metrics[name] < high < 1
    assert TARGET.intervals(outputs, numbers) == intervals


def test_the_table_of_classes_is_scikit_learns() -> None:
    """A class that does not occur has a row of zeros."""
    outputs, numbers, predicted = predicted_samples()
    (classes, confusions), (picture,) = TARGET.details(outputs, numbers)
    assert (classes.key, confusions.key) == ("classes", "confusions")
    assert [row["label"] for row in classes.rows] == list(NAMES)
    expected = precision_recall_fscore_support(numbers, predicted, labels=range(5), zero_division=0.0)
    for column, values in zip(("precision", "recall", "f1", "samples"), expected, strict=True):
        assert [row[column] for row in classes.rows] == pytest.approx(values.tolist())
    assert classes.rows[4] == {"label": "eel", "precision": 0, "recall": 0, "f1": 0, "samples": 0}
    matrix, names = picture.data
    assert (picture.kind, picture.file, names) == ("confusion", "confusion.png", list(NAMES))
    assert np.array_equal(matrix, confusion_matrix(numbers, predicted, labels=range(5)))


def test_the_most_frequent_confusions_come_first() -> None:
    """Equal ones in the order of the classes; what is right is no confusion."""
    matrix = np.array([[9, 2, 0, 1], [3, 9, 1, 0], [1, 1, 9, 1], [0, 0, 0, 9]])
    assert [(row["true"], row["predicted"], row["samples"]) for row in most_confused(matrix, "abcd")] == [
        ("b", "a", 3), ("a", "b", 2), ("a", "d", 1), ("b", "c", 1), ("c", "a", 1),
    ]  # fmt: skip
    assert most_confused(np.diag([1, 2]), "ab") == []


def test_without_confusions_there_is_no_table_of_them() -> None:
    tables, _ = TARGET.details(torch.eye(5), np.arange(5))
    assert [table.key for table in tables] == ["classes"]


@pytest.mark.parametrize("top", [1, 3, 5, 9])
def test_answers_are_the_most_probable_classes(top: int) -> None:
    outputs = some_outputs(4)
    probabilities = outputs.double().softmax(-1).numpy()
    for answer, row in zip(TARGET.answers(outputs, top), probabilities, strict=True):
        order = np.argsort(-row)[:top]
        assert [name for name, _ in answer] == [NAMES[number] for number in order]
        assert [share for _, share in answer] == pytest.approx(row[order].tolist(), rel=1e-5)


def test_a_model_keeps_the_names_of_its_classes_in_their_order() -> None:
    """Beyond ten classes, where numbers in text would be sorted otherwise; a kind of task is not inherited."""
    target = Classes(tuple(f"class {number}" for number in range(12)))
    config: Any = BertConfig(**target.model_settings())
    assert (config.num_labels, config.problem_type) == (12, "single_label_classification")
    assert config.label2id["class 10"] == 10
    assert target_of_model(BertConfig.from_dict(config.to_dict())) == target
    config.id2label = dict(reversed(config.id2label.items()))
    assert Classes.of_model(config) == target


def test_a_model_of_no_known_kind_is_taken_for_one_of_classes() -> None:
    """Most models on the Hub say nothing of it."""
    config = BertConfig(id2label={0: "no", 1: "yes"})
    for problem_type in (None, "single_label_classification", "clustering"):
        assert target_of_model(config, problem_type) == Classes(("no", "yes"))


def test_true_values_are_shown_by_their_names() -> None:
    assert [TARGET.shown(value) for value in np.array([1, 0])] == ["bee", "ant"]


def test_a_finished_model_reads_classes_by_its_own_names() -> None:
    """In another order, and of which the data have some only."""
    rows = datasets.Dataset.from_dict({"kind": ["dog", "ant", "dog"]})
    columns = LabelColumns(("kind",), outputs=NAMES)
    target, values = Classes.read({"test": rows}, columns)
    assert target == Classes(NAMES)
    assert [NAMES[number] for number in values["test"]] == ["dog", "ant", "dog"]
    with pytest.raises(UserError, match=r"'fox' in 1 rows, first in row 1 of split 'test'"):
        Classes.read({"test": datasets.Dataset.from_dict({"kind": ["dog", "fox"]})}, columns)


def test_classes_are_read_from_a_column_and_counted() -> None:
    rows = datasets.Dataset.from_dict({"kind": ["dog", "cat", "dog"]})
    target, values = Classes.read({"train": rows}, LabelColumns(("kind",)))
    assert (target, target.names, target.describe()) == (Classes(("cat", "dog")), ["cat", "dog"], "2 classes")
    assert values["train"].tolist() == target.strata(values["train"]).tolist() == [1, 0, 1]
    with pytest.raises(UserError, match="at least 2 training samples of each class"):
        target.check(values, splits_to_cut=0)


def labels(feature: Any, values: list[Any]) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"label": values}, features=datasets.Features({"label": feature}))


@pytest.mark.parametrize(
    "train",
    [labels(datasets.ClassLabel(names=["a", "b"]), [0, 1]), labels(datasets.Value("string"), ["a", "b", "c; d"])],
    ids=["ClassLabel", "texts"],
)
def test_a_column_of_labels_is_a_target_of_classes(train: datasets.Dataset) -> None:
    for problem_type in (None, "single_label_classification"):
        assert target_of(problem_type, train, COLUMN) == (Classes, [])
    assert TARGETS["single_label_classification"] is Classes


def test_class_names_that_look_like_several_labels_are_reported() -> None:
    (note,) = Classes(("a", "b; c")).notes({})
    assert note == ("'b; c' is one class. If samples have several labels: --problem_type multi_label_classification.")
    assert Classes(("a", "b, c")).notes({}) == []


def test_the_baseline_is_always_the_most_frequent_class() -> None:
    """Its loss is the cross-entropy of the shares of the classes in training."""
    train, test = np.array([2, 2, 2, 0, 1, 0]), np.array([2, 0, 2, 4])
    name, metrics = judged(TARGET.constant(train), test)
    assert name == "always the most frequent class"
    assert metrics["accuracy"] == 0.5
    known = log_loss(test[:3], np.array([[2, 1, 3]] * 3) / 6, labels=[0, 1, 2])
    assert judged(TARGET.constant(train), test[:3]).metrics["loss"] == pytest.approx(known, rel=1e-5)
    assert np.isfinite(metrics["loss"])


def test_a_kind_of_target_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(UserError) as error:
        target_of("clustering", labels(datasets.Value("string"), ["a", "b"]), COLUMN)
    assert str(error.value).splitlines()[:2] == [
        "Expected: for --problem_type one of single_label_classification, multi_label_classification, regression",
        "Found:    clustering",
    ]
