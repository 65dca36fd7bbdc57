"""Predictions of a split, every sample once, and their metrics against scikit-learn and torch."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from hf_transfer.targets.predictions import Predictions, Ranking
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.predictions import predict_split
from tests.tiny_models import logits
from tests.training.toy_task import TARGET, Rows, loaders_of, settings, vit


def test_a_split_is_predicted_in_order_and_without_masked_rows() -> None:
    model, _ = vit()
    rows = Rows(11, masked=(3, 7))
    with start_accelerator(settings()) as accelerator:
        loaders = loaders_of(accelerator, rows, rows, 4)
        for split in ("train", "validation", "test"):
            loaders.train.set_epoch(5)
            predictions = predict_split(model.train(), loaders, split, accelerator)
            assert predictions.target == TARGET
            assert predictions.masked == 2
            assert predictions.index.tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
            assert predictions.targets.tolist() == rows.labels[rows.counted].tolist()
            assert not predictions.outputs.requires_grad
            expected = logits(model.eval(), {"pixel_values": rows.pixels})[predictions.index]
            torch.testing.assert_close(predictions.outputs, expected)


@pytest.mark.parametrize("positions", [[0, 1, 2, 3, 4, 4], [0, 1, 2, 3]])
def test_a_sample_that_is_seen_twice_or_never_is_noticed(positions: list[int]) -> None:
    model, _ = vit()
    rows = Rows(5)
    with start_accelerator(settings()) as accelerator:
        loaders = loaders_of(accelerator, rows, torch.utils.data.Subset(rows, positions), 4)  # type: ignore[arg-type]
        loaders.validation.dataset.split = rows.split
        with pytest.raises(AssertionError, match=r"evaluation must see every sample exactly once"):
            predict_split(model, loaders, "validation", accelerator)


def test_metrics_agree_with_scikit_learn_and_torch() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 5, 80)
    scores = torch.from_numpy(generator.normal(size=(80, 5)).astype(np.float32))
    metrics = Predictions(TARGET, scores, labels, np.arange(80)).metrics()
    predicted = scores.numpy().argmax(1)
    probabilities = torch.softmax(scores.double(), 1).numpy()
    assert metrics.keys() == {"accuracy", "f1_macro", "loss"}
    assert metrics["accuracy"] == pytest.approx(np.mean(predicted == labels)) == accuracy_score(labels, predicted)
    # Macro F1 by its definition: 2 TP / (2 TP + FP + FN), averaged over classes.
    by_class = [2 * np.sum((predicted == c) & (labels == c)) / (np.sum(predicted == c) + np.sum(labels == c))
                for c in range(5)]  # fmt: skip
    assert metrics["f1_macro"] == pytest.approx(np.mean(by_class))
    assert metrics["f1_macro"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert metrics["loss"] == pytest.approx(-np.log(probabilities[np.arange(80), labels]).mean(), rel=1e-5)


def test_a_class_that_is_never_predicted_right_scores_zero_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    scores = torch.eye(5)[[0, 0, 1]]
    metrics = Predictions(TARGET, scores, np.array([0, 2, 1]), np.arange(3)).metrics()
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["f1_macro"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert not [warning for warning in recwarn if "F-score" in str(warning.message)]


def test_an_epoch_with_a_loss_of_nan_is_worse_than_any() -> None:
    """NaN never compares as better: without this, the history and the kept weights would disagree."""
    ranking = Ranking.of(TARGET, "loss")
    broken = {"accuracy": 0.5, "f1_macro": 0.5, "loss": math.nan}
    sound = {"accuracy": 0.1, "f1_macro": 0.1, "loss": 9.0}
    assert ranking.is_better(sound, [broken], 0)
    assert not ranking.is_better(broken, [sound], 0)
