"""The scripts for a linear probe that a practitioner would write, each to be run in a process of its own.

    python -m benchmarks.probe_scripts plain|tuned|trainer image|text MODEL DATA OUT

`plain` and `tuned` read the data with `datasets`, compute features in one pass, solve scikit-learn's logistic
regression for the values of C from 0.01 to 100, choose by validation, save the model, load it again and judge it on the
test split. The tuned one keeps freed memory (mallopt), computes convolutions in `channels_last` and texts of similar
length together, and has batches of 16 in place of 32. `trainer` trains the last layer by `transformers.Trainer`
instead, in 3 epochs at a rate of 1e-3, and keeps the best epoch.
"""

import ctypes
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
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
    Trainer,
    TrainingArguments,
)

Outputs = np.ndarray[Any, np.dtype[np.float32]]
Inputs = Callable[[list[Any]], Any]
BySplit = Mapping[str, list[Any]]


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
    model, inputs_of = _model(kind, path, len(classes), tuned)
    if how == "trainer":
        _train_head(model, inputs_of, samples, targets, out)
    else:
        _solve_head(model, inputs_of, samples, targets, tuned=tuned)
    model.to(memory_format=torch.contiguous_format).save_pretrained(out)
    model, inputs_of = _model(kind, path, len(classes), tuned, out)
    answers = _outputs(model, inputs_of, samples["test"], tuned).argmax(1)
    print(json.dumps({"accuracy": float((answers == targets["test"]).mean())}))


def _solve_head(model: Any, inputs_of: Inputs, samples: BySplit, targets: BySplit, *, tuned: bool) -> None:
    """Logistic regression on features from one pass."""
    layer: Any = model.classifier[-1] if isinstance(model.classifier, nn.Sequential) else model.classifier
    with features_only(model):
        features = {name: _outputs(model, inputs_of, samples[name], tuned) for name in ("train", "validation")}
    solved = [
        LogisticRegression(C=c, max_iter=1_000).fit(features["train"], targets["train"])
        for c in 10.0 ** np.arange(-2, 3)
    ]
    best = max(solved, key=lambda one: one.score(features["validation"], targets["validation"]))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(best.coef_))
        layer.bias.copy_(torch.from_numpy(best.intercept_))


def _train_head(model: Any, inputs_of: Inputs, samples: BySplit, targets: BySplit, out: str) -> None:
    """The last layer by Trainer, on a backbone without gradients."""
    model.requires_grad_(False)
    model.classifier.requires_grad_(True)
    arguments = TrainingArguments(
        output_dir=f"{out}-trainer", num_train_epochs=3, learning_rate=1e-3, per_device_train_batch_size=32,
        per_device_eval_batch_size=32, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True,
        report_to="none", disable_tqdm=True, use_cpu=True, remove_unused_columns=False,
    )  # fmt: skip
    rows = {name: [*zip(samples[name], targets[name], strict=True)] for name in ("train", "validation")}

    def collate(batch: list[tuple[Any, int]]) -> dict[str, Any]:
        some, labels = zip(*batch, strict=True)
        return {**inputs_of(list(some)), "labels": torch.tensor(labels)}

    Trainer(
        model, arguments, data_collator=collate, train_dataset=rows["train"], eval_dataset=rows["validation"]
    ).train()


def _files(kind: str, data: str) -> dict[str, Any]:
    if kind == "image":
        return {"data_dir": data}
    return {"data_files": {name: str(Path(data) / f"{name}.csv") for name in ("train", "validation", "test")}}


def _samples(split: Any, kind: str) -> list[Any]:
    return [image.convert("RGB") for image in split["image"]] if kind == "image" else list(split["text"])


def _model(kind: str, path: str, classes: int, tuned: bool, saved: str | None = None) -> tuple[Any, Inputs]:
    options: dict[str, Any] = {} if saved else {"num_labels": classes, "ignore_mismatched_sizes": True}
    if kind == "text":
        tokenizer: Any = AutoTokenizer.from_pretrained(path)
        model: Any = AutoModelForSequenceClassification.from_pretrained(saved or path, **options).eval()
        return model, partial(tokenizer, padding=True, truncation=True, return_tensors="pt")
    processor = AutoImageProcessor.from_pretrained(path)
    model = AutoModelForImageClassification.from_pretrained(saved or path, **options).eval()
    if tuned:
        model.to(memory_format=torch.channels_last)
    return model, partial(processor, return_tensors="pt")


@contextmanager
def features_only(model: Any) -> Iterator[None]:
    """Inside, the logits of the model are the inputs of its last layer."""
    whole: Any = model.classifier
    model.classifier = nn.Sequential(*list(whole)[:-1]) if isinstance(whole, nn.Sequential) else nn.Identity()
    try:
        yield
    finally:
        model.classifier = whole


@torch.no_grad()
def _outputs(model: Any, inputs_of: Inputs, samples: list[Any], tuned: bool) -> Outputs:
    size = 16 if tuned else 32
    order = (
        sorted(range(len(samples)), key=lambda row: len(samples[row]))
        if isinstance(samples[0], str) and tuned
        else [*range(len(samples))]
    )
    rows: list[Any] = [None] * len(samples)
    for start in range(0, len(samples), size):
        places = order[start : start + size]
        outputs = model(**inputs_of([samples[place] for place in places])).logits
        for place, output in zip(places, outputs.numpy(), strict=True):
            rows[place] = output
    return np.stack(rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
