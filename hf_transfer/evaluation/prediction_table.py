"""Predictions of samples without labels, as a table."""

from pathlib import Path
from typing import Any

import pandas

from hf_transfer.data.complete_files import put
from hf_transfer.data.rows import encoded_image
from hf_transfer.data.splits import Split, Unlabelled
from hf_transfer.settings.output import PREDICTIONS_FILE
from hf_transfer.targets.predictions import Predictions


def write_predictions(folder: Path, predictions: Predictions, unlabelled: Unlabelled) -> Path:
    """Write `predictions.csv`: a line for each sample without a label, in the order of the data.

    The columns: `row`, counted from 1 below the header, or `path` of a picture or a file of text; the columns of the
    data that tell rows apart, such as an identifier; and the answer. Of a masked sample the answer is empty.

    Args:
        folder: of the run.
        predictions: for these samples.
        unlabelled: the samples.
    """
    split, target = unlabelled.split, predictions.target
    answers = target.labelled_answers(predictions.outputs, unlabelled.columns)
    answer_of = dict(zip(predictions.index.tolist(), answers, strict=True))
    lines = [
        {
            **_place(split, row),
            **{name: values[row] for name, values in unlabelled.keys.items()},
            **answer_of.get(row, {}),
        }
        for row in split.rows.tolist()
    ]
    path = folder / PREDICTIONS_FILE
    put(path, pandas.DataFrame(lines).to_csv(index=False, lineterminator="\n").encode())
    return path


def _place(split: Split, row: int) -> dict[str, Any]:
    path = encoded_image(split, row)["path"] if "image" in split.dataset.column_names else None
    if path is None and split.origins is not None:
        path = split.origins.whole_file(row)
    return {"path": path} if path else {"row": row + 1}
