"""Tiny finished models of labels and of numbers, whose heads are set for some samples, and their Spaces."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from tests.space.pairs import a_picture
from tests.space.spaces import write_space
from tests.tiny_models import ALL, tiny_model
from tests.tiny_pairs import side, tiny_pair
from tests.tiny_text_models import tiny_text_model, tiny_tokenizer

Rows = Sequence[Sequence[float]]
TAGS = ("Game", "Education", "Office", "Software development", "Audio and video", "Graphics", "Network", "Settings")
THRESHOLDS = (0.5, 0.35, 0.6, 0.5, 0.25, 0.5, 0.5, 0.8)
TEXTS = ("word7 word8, word9 word10", "word20 word21 word22", "word30 word31, word32 word33 word34")
# What they have: of the second one label is missing, and one is chosen that it does not have.
TAGS_OF_TEXTS = (("Game", "Education"), ("Office", "Network"), ())
SHARES = (
    (0.97, 0.41, 0.02, 0.005, 0.2, 0.08, 0.01, 0.003),
    (0.01, 0.05, 0.88, 0.3, 0.31, 0.02, 0.22, 0.04),
    (0.1, 0.2, 0.3, 0.04, 0.02, 0.13, 0.002, 0.75),
)
HEIGHTS, TRUE_HEIGHTS = (74.2, 43.9, 181.6), (71.5, 45.0, 240.0)
INTERVAL = {"coverage": 0.9, "half_widths": [12.4], "samples": 240}


# The columns of the table of results of a run with five metrics.
COLUMNS = ("split", "samples", "mean average precision", "95 % interval", "micro F1", "95 % interval", "macro F1",
           "95 % interval", "F1 per sample", "95 % interval", "subset accuracy", "95 % interval", "loss")  # fmt: skip
CARD = f"""# Topics of apps

A text classifier with 8 labels.

| {" | ".join(COLUMNS)} |
|{"---|" * len(COLUMNS)}
| validation | 820 | 0.6518 | 0.6157 to 0.6828 | 0.6913 | {" | ".join(["0.6617 to 0.7078", "0.5920"] * 4)} |
| test | 812 | 0.6413 | 0.6020 to 0.6790 | 0.6812 | {" | ".join(["0.6546 to 0.6998", "0.5811"] * 4)} |

| setting | value |
|---|---|
| revision | 0123456789abcdef0123456789abcdef01234567 |
"""


def set_head(model: PreTrainedModel, head: nn.Linear, inputs: dict[str, torch.Tensor], logits: Rows) -> None:
    """Set the weights of a head so that these inputs get these logits."""
    features: list[torch.Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, given: features.append(given[0].double()))
    with torch.no_grad():
        model(**inputs)
        handle.remove()
        # With a column for the bias; the solution of least norm.
        known = torch.cat([features[0], torch.ones(len(features[0]), 1)], 1)
        solved = torch.linalg.lstsq(known, torch.tensor(logits, dtype=torch.double), driver="gelsd").solution
        head.weight.copy_(solved[:-1].T)
        head.bias.copy_(solved[-1])


def logits_of(shares: Rows) -> list[list[float]]:
    """The logits whose sigmoids are these."""
    return [[float(np.log(share / (1 - share))) for share in row] for row in shares]


def settings_of(names: Sequence[str], **more: Any) -> dict[str, Any]:
    """Settings of a configuration with names of the outputs."""
    numbers = {name: number for number, name in enumerate(names)}
    return {"num_labels": len(names), "id2label": dict(enumerate(names)), "label2id": numbers, **more}


def labels_of_texts(folder: Path, **more: Any) -> Path:
    """A model that predicts `SHARES` of `TEXTS`."""
    settings = {"problem_type": "multi_label_classification", "thresholds": THRESHOLDS, "label_separator": ";"}
    model: Any = tiny_text_model("bert", **settings_of(TAGS, **(settings | more)))
    tokenizer = tiny_tokenizer()
    set_head(model, model.classifier, tokenizer(list(TEXTS), padding=True, return_tensors="pt"), logits_of(SHARES))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def number_of_pictures(folder: Path, name: str = "resnet_basic", **more: Any) -> Path:
    """A model that predicts `HEIGHTS` of three pictures."""
    settings = settings_of(["height in cm"], problem_type="regression", prediction_interval=INTERVAL, **more)
    model: Any = tiny_model(name, **settings)
    processor = ViTImageProcessorPil(size={"height": ALL[name].side, "width": ALL[name].side})
    pictures = processor([a_picture(number) for number in range(3)], return_tensors="pt")
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    set_head(model, head, dict(pictures), [[height] for height in HEIGHTS])
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def model_of_pairs(folder: Path, names: Sequence[str], logits: Sequence[float], **settings: Any) -> Path:
    """A model of images with texts that predicts these logits of the first picture with the first text."""
    model = tiny_pair("vit", **settings_of(names, **settings))
    processor = ViTImageProcessorPil(size={"height": side("vit"), "width": side("vit")})
    tokenizer = tiny_tokenizer()
    inputs = dict(processor([a_picture(0)], return_tensors="pt")) | dict(tokenizer([TEXTS[0]], return_tensors="pt"))
    set_head(model, model.classifier, inputs, [logits])
    for part in (model, processor, tokenizer):
        part.save_pretrained(folder)
    return folder


def labels_space(folder: Path) -> Path:
    """A Space of `labels_of_texts`: of its examples one is right, one is not, and one has no label."""
    labels_of_texts(folder / "model")
    examples = [
        {"label": "; ".join(truth) or "no label", "texts": [text], "truth": truth}
        for text, truth in zip(TEXTS, TAGS_OF_TEXTS, strict=True)
    ]
    (folder / "model/README.md").write_text(CARD)
    score = {"title": "mean average precision", "value": 0.641, "low": 0.602, "high": 0.679, "is_share": True}
    score["samples"] = "812"
    return write_space(folder, title="Topics of apps", texts=["text"], score=score, examples=examples)


def number_space(folder: Path) -> Path:
    """A Space of `number_of_pictures`: of its examples the last one is outside the interval."""
    number_of_pictures(folder / "model")
    (folder / "examples").mkdir()
    examples = []
    for number, height in enumerate(TRUE_HEIGHTS):
        picture = f"examples/{number + 1}.png"
        a_picture(number).save(folder / picture)
        examples.append({"label": f"{height:g}", "picture": picture, "truth": [height]})
    score = {"title": "RMSE", "value": 8.31, "low": 7.4, "high": 9.2, "is_share": False, "samples": "260"}
    return write_space(folder, title="Heights of furniture", score=score, examples=examples)
