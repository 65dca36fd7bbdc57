"""The scripts for a linear probe that a practitioner would write, plain and tuned, to be run in a process of their own.

    python -m benchmarks.probe_scripts plain|tuned image|text MODEL DATA OUT

Both read the data with `datasets`, compute features in one pass, solve scikit-learn's logistic regression for the
values of C from 0.01 to 100, choose by validation, save the model, load it again and judge it on the test split. The
tuned one keeps freed memory (mallopt), computes convolutions in `channels_last` and texts of similar length together,
and has batches of 16 in place of 32.
"""

import ctypes
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

Outputs = np.ndarray[Any, np.dtype[np.float32]]
Forward = Callable[[list[Any]], torch.Tensor]


def main(how: str, kind: str, path: str, data: str, out: str) -> None:
    """Run a script; prints the test accuracy."""
    tuned = how == "tuned"
    if tuned:
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)
        libc.mallopt(-1, -1)
    splits = datasets.load_dataset("imagefolder" if kind == "image" else "csv", **_files(kind, data))
    samples = {name: _samples(split, kind) for name, split in splits.items()}
    classes = sorted(set(splits["train"]["label"]), key=str)
    targets = {name: [classes.index(label) for label in split["label"]] for name, split in splits.items()}
    model, forward = _model(kind, path, len(classes), tuned)
    layer: Any = model.classifier[-1] if isinstance(model.classifier, nn.Sequential) else model.classifier
    with FeaturesOnly(model):
        features = {name: _outputs(forward, rows, tuned) for name, rows in samples.items() if name != "test"}
    solved = [
        LogisticRegression(C=c, max_iter=1_000).fit(features["train"], targets["train"])
        for c in 10.0 ** np.arange(-2, 3)
    ]
    best = max(solved, key=lambda one: one.score(features["validation"], targets["validation"]))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(best.coef_))
        layer.bias.copy_(torch.from_numpy(best.intercept_))
    model.to(memory_format=torch.contiguous_format).save_pretrained(out)
    model, forward = _model(kind, path, len(classes), tuned, out)
    answers = _outputs(forward, samples["test"], tuned).argmax(1)
    print(json.dumps({"accuracy": float((answers == targets["test"]).mean())}))


def _files(kind: str, data: str) -> dict[str, Any]:
    if kind == "image":
        return {"data_dir": data}
    return {"data_files": {name: str(Path(data) / f"{name}.csv") for name in ("train", "validation", "test")}}


def _samples(split: Any, kind: str) -> list[Any]:
    return [image.convert("RGB") for image in split["image"]] if kind == "image" else list(split["text"])


def _model(kind: str, path: str, classes: int, tuned: bool, saved: str | None = None) -> tuple[Any, Forward]:
    options: dict[str, Any] = {} if saved else {"num_labels": classes, "ignore_mismatched_sizes": True}
    if kind == "text":
        tokenizer = AutoTokenizer.from_pretrained(path)
        model: Any = AutoModelForSequenceClassification.from_pretrained(saved or path, **options).eval()
        return model, lambda rows: model(**tokenizer(rows, padding=True, truncation=True, return_tensors="pt")).logits
    processor = AutoImageProcessor.from_pretrained(path)
    model = AutoModelForImageClassification.from_pretrained(saved or path, **options).eval()
    if tuned:
        model.to(memory_format=torch.channels_last)
    return model, lambda rows: model(**processor(rows, return_tensors="pt")).logits


class FeaturesOnly:
    """Inside, the logits of the model are the inputs of its last layer."""

    def __init__(self, model: Any) -> None:
        self._model, self._classifier = model, model.classifier

    def __enter__(self) -> None:
        whole: Any = self._classifier
        self._model.classifier = nn.Sequential(*list(whole)[:-1]) if isinstance(whole, nn.Sequential) else nn.Identity()

    def __exit__(self, *_: object) -> None:
        self._model.classifier = self._classifier


@torch.no_grad()
def _outputs(forward: Forward, samples: list[Any], tuned: bool) -> Outputs:
    size = 16 if tuned else 32
    order = (
        sorted(range(len(samples)), key=lambda row: len(samples[row]))
        if isinstance(samples[0], str) and tuned
        else [*range(len(samples))]
    )
    rows: list[Any] = [None] * len(samples)
    for start in range(0, len(samples), size):
        places = order[start : start + size]
        for place, output in zip(places, forward([samples[place] for place in places]).numpy(), strict=True):
            rows[place] = output
    return np.stack(rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
