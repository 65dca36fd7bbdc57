"""What can be done with a family of backbones: each is tried on a tiny checkpoint, as a user does it."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import hf_transfer as ht
from classifier import Classifier, Sample
from hf_transfer.errors import UserError
from hf_transfer.export.folder import export_model
from hf_transfer.hub.space import assemble_space
from pictures import decode
from tests.blocked_imports import BLOCK_HF_TRANSFER
from tests.data.conftest import text_rows, write_table
from tests.families.checkpoints import Family

SOLVED, TRAINED = ("linear_probe", "deep_probe"), ("partial", "full", "lora")
YES, MERGED = "yes", "merged"
SIDE = 40
ROWS = {"train": 24, "validation": 8, "test": 8}
# Weights that are trained behind the store and without it: sums in another order.
LARGEST_DIFFERENCE = 1e-4
LARGEST_DIFFERENCE_OF_ANSWERS = 1e-4
TASKS = {"vision": "image-classification", "text": "text-classification"}
WITHOUT_US = (
    BLOCK_HF_TRANSFER
    + """
import json
from transformers import pipeline

task, samples, models = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3:]
answers = {}
for model in models:
    classify = pipeline(task, model, device="cpu", trust_remote_code=True)
    answers[model] = [{row["label"]: row["score"] for row in classify(one, top_k=2)} for one in samples]
print("ANSWERS", json.dumps(answers))
"""
)


class Trial:
    """The runs of one family, each made when it is first asked for.

    Args:
        family: the family.
        folder: an empty folder for the checkpoint, the data and the runs.

    Attributes:
        checkpoint: the folder of the pretrained model.
    """

    def __init__(self, family: Family, folder: Path) -> None:
        self.family, self._folder, self.checkpoint = family, folder, folder / "checkpoint"
        self._runs: dict[str, Path | UserError] = {}
        family.save(self.checkpoint)
        self._data = pictures(folder / "data") if family.recipe == "vision" else texts(folder / "data")

    def run(self, strategy: str, **settings: Any) -> Path:
        """The folder of a finished run.

        Args:
            strategy: its strategy.
            **settings: further settings, which tell runs of a strategy apart.

        Raises:
            UserError: the run is refused.
        """
        name = " ".join([strategy, *(f"{key}={value}" for key, value in settings.items())])
        if name not in self._runs:
            self._runs[name] = self._trained(strategy, self._folder / f"run {len(self._runs)}", settings)
        out = self._runs[name]
        if isinstance(out, UserError):
            raise out
        return out

    def finished(self, strategy: str, *others: str) -> list[Path]:
        """Folders of finished runs: of a strategy, and of those others that are not refused."""
        runs = [self.run(strategy)]
        for other in others:
            # The table shows a refusal in the column of that strategy.
            with suppress(UserError):
                runs.append(self.run(other))
        return runs

    def samples(self) -> list[str]:
        """Some samples of the test split: files of pictures, or texts."""
        if self.family.recipe == "vision":
            return [str(path) for path in sorted((self._data / "test").rglob("*.png"))[::3]]
        return [row["text"] for row in text_rows(3, seed=9)]

    def scratch(self, name: str) -> Path:
        """A new folder."""
        folder = self._folder / name
        folder.mkdir()
        return folder

    def _trained(self, strategy: str, out: Path, settings: Mapping[str, Any]) -> Path | UserError:
        common: dict[str, Any] = {"cache_dir": str(self._folder / "cache")}
        if self.family.recipe == "vision":
            common["augmentation"] = "none"
        if strategy in TRAINED:
            common["num_train_epochs"] = 1
        try:
            run = ht.train(
                self._data, str(self.checkpoint), output_dir=out, modality=self.family.recipe,
                strategy=strategy, **common, **settings,
            )  # fmt: skip
        except UserError as error:
            return error
        assert np.isfinite(run.metrics["test"]["loss"])
        return out


def _trains(strategy: str, trial: Trial) -> str:
    trial.run(strategy)
    return YES


def _adapts(trial: Trial) -> str:
    """Adapters are saved alone, or merged where the model has a head of ours, which peft does not know."""
    try:
        trial.run("lora")
    except UserError:
        trial.run("lora", merge_adapter=True)
        return MERGED
    return YES


def _stores(trial: Trial) -> str:
    """What is trained behind stored outputs of frozen layers equals what is trained with all layers."""
    weights = []
    for kind in ("on", "off"):
        model = trial.run("partial", trainable_layers=1, cache_frozen=kind) / "model"
        weights.append(load_file(model / "model.safetensors"))
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=LARGEST_DIFFERENCE, atol=LARGEST_DIFFERENCE)
    return YES


def _reloads(trial: Trial) -> str:
    """A pipeline of transformers gives the same answers in a program in which hf_transfer cannot be imported."""
    runs = trial.finished("linear_probe", "full", "deep_probe")
    samples = trial.samples()
    words = [TASKS[trial.family.recipe], json.dumps(samples), *(str(out / "model") for out in runs)]
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, *words], cwd=trial.scratch("reload"), capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2_000:]
    answers = json.loads(ended.stdout.partition("ANSWERS")[2])
    for out in runs:
        _same_answers(answers[str(out / "model")], ht.load(out)(samples))
    return YES


def _is_served(trial: Trial) -> str:
    """The demo's classifier gives the same answers, also with an adapter, which is merged for it."""
    for out in trial.finished("linear_probe", "lora"):
        space = assemble_space(out, trial.scratch(f"space of {out.name}"))
        settings = json.loads((space / "settings.json").read_text(encoding="utf-8"))
        demo = Classifier(space / "model", trust_remote_code=settings["trust_remote_code"])
        given = trial.samples()
        asked = [Sample(decode(one)) if trial.family.recipe == "vision" else Sample(texts=(one,)) for one in given]
        shown = [dict(zip(demo.labels, scores, strict=True)) for scores in demo.scores(asked)]
        _same_answers(shown, ht.load(out)(given))
    return YES


def _exports(trial: Trial) -> str:
    """`export_model` refuses a model whose answers differ from torch by more than 1e-5."""
    export_model(str(trial.run("full") / "model"), trial.scratch("onnx"))
    return YES


def _same_answers(answers: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert len(answers) == len(expected)
    for answer, one in zip(answers, expected, strict=True):
        assert answer.keys() == one.keys()
        assert max(abs(answer[label] - one[label]) for label in one) <= LARGEST_DIFFERENCE_OF_ANSWERS


# By the title of a column. Each returns the word of a cell, or raises an error that says what is missing.
ABILITIES: dict[str, Callable[[Trial], str]] = {
    **{f"`{strategy}`": partial(_trains, strategy) for strategy in (*SOLVED, "partial", "full")},
    "`lora`": _adapts,
    "store": _stores,
    "reload": _reloads,
    "Space": _is_served,
    "export": _exports,
}


def pictures(folder: Path, rows: Mapping[str, int] = ROWS) -> Path:
    """Two classes of noise, one reddish and one greenish; as many pictures in each split."""
    generator = np.random.default_rng(0)
    for split, count in rows.items():
        for channel, label in enumerate(("red", "green")):
            (folder / split / label).mkdir(parents=True)
            for number in range(count // 2):
                noise = generator.integers(0, 100, (SIDE, SIDE + 6, 3))
                noise[..., channel] += 120
                Image.fromarray(noise.astype(np.uint8)).save(folder / split / label / f"{number}.png")
    return folder


def texts(folder: Path, rows: Mapping[str, int] = ROWS) -> Path:
    """Texts of two classes; as many in each split."""
    for seed, (split, count) in enumerate(rows.items()):
        write_table(folder / f"{split}.csv", text_rows(count, seed=seed))
    return folder
