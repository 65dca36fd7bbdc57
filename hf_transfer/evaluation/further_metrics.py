"""Metrics that a user names, by the package `evaluate`, which is imported only then."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_transfer.errors import user_error
from hf_transfer.targets.predictions import Predictions
from hf_transfer.targets.reporting import Table
from hf_transfer.targets.target import Values

COLUMNS = ("metric", "value")
AVERAGE = "macro"


def check(names: Sequence[str]) -> None:
    """Load metrics once, so that a wrong name is reported before training.

    Raises:
        UserError: one of them cannot be loaded.
    """
    for name in names:
        _load(name)


def table(names: Sequence[str], predictions: Predictions) -> list[Table]:
    """A table of further metrics of the test split; none without names.

    A metric that cannot be computed has the reason in its row: it must not cost the run.

    Args:
        names: of metrics on the Hub, or paths of scripts.
        predictions: for the test split.
    """
    predicted, true = predictions.target.predicted(predictions.outputs), predictions.targets
    # Some of the cells of a sample may not be known.
    known = np.isfinite(true).reshape(len(true), -1).all(1)
    predicted, true = _as_evaluate_takes_it(predicted[known]), _as_evaluate_takes_it(true[known])
    config_name = None if true.ndim == 1 else "multilist" if true.dtype.kind == "f" else "multilabel"
    rows = [row for name in names for row in _rows(name, config_name, predicted, true)]
    return [Table("further_metrics", "Further metrics (test)", COLUMNS, COLUMNS, rows)] if names else []


def _as_evaluate_takes_it(values: Values) -> Values:
    """One number for a sample without a dimension of its own, and labels as whole numbers."""
    if values.dtype == np.float32:
        values = values.astype(np.int64)
    return values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values


def _rows(name: str, config_name: str | None, predicted: Values, true: Values) -> list[dict[str, Any]]:
    metric = _load(name, config_name)
    samples = {"predictions": predicted.tolist(), "references": true.tolist()}
    try:
        try:
            values, suffix = metric.compute(**samples), ""
        except ValueError as error:
            # Metrics of scikit-learn are those of two classes unless an average is named.
            if "average" not in str(error):
                raise
            values, suffix = metric.compute(**samples, average=AVERAGE), f" ({AVERAGE})"
    except Exception as error:
        # A script of the user can raise anything, and the run is complete.
        return [{"metric": name, "value": f"not computed: {type(error).__name__}: {error}"[:200]}]
    return [
        {"metric": f"{key}{suffix}", "value": float(value)}
        for key, value in values.items()
        if isinstance(value, int | float | np.number) and np.isfinite(value)
    ]


def _load(name: str, config_name: str | None = None) -> Any:
    import evaluate

    try:
        return evaluate.load(name, config_name)
    except Exception as error:
        # Loading asks the Hub, and runs a script: both can raise anything.
        raise user_error(
            expected=f"for --metrics names of metrics that evaluate can load, or paths of scripts: {name}",
            found=(str(error) or type(error).__name__).splitlines()[0][:300],
            do="correct the name or the path, check the network, or leave it out",
        ) from error
