"""`evaluate` metrics that need no network: `evaluate.load` would download a script and execute it."""

from typing import Any

import datasets
import evaluate
from sklearn.metrics import accuracy_score, f1_score


class ClassificationMetrics(evaluate.Metric):
    """Accuracy and macro F1 by scikit-learn, in the shape of an `evaluate` metric.

    Macro F1 is the plain mean over the classes that occur in predictions or references.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy and macro F1 of a classifier with one label per sample.",
            citation="",
            inputs_description="predictions and references: class numbers",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "f1_macro": float(f1_score(references, predictions, average="macro", zero_division=0.0)),
        }
