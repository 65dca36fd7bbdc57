"""Predictions of a finished model for samples that belong to no data set."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers.utils.hub import cached_file

from hf_transfer.data.batches import in_parts, parts_within
from hf_transfer.data.hub_access import is_hub_id
from hf_transfer.data.sample_models import backbone_folder
from hf_transfer.data.samples import is_sample
from hf_transfer.errors import user_error
from hf_transfer.evaluation.answers import Answer, Scores
from hf_transfer.evaluation.run_folder import MODEL_FOLDER
from hf_transfer.evaluation.saved_model import load_finished
from hf_transfer.modalities.modality import (
    PREPROCESSING_FILE,
    LocatedSample,
    Modality,
    Preprocessing,
    Typed,
    saved_description,
)
from hf_transfer.modalities.sample_tables import is_table
from hf_transfer.modalities.table import MODALITIES, modality_named
from hf_transfer.models import timm_models
from hf_transfer.models.modeling_deep_probe import DeepProbeConfig
from hf_transfer.models.modeling_pooled_probe import PooledProbeConfig
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.models.tasks import TASKS
from hf_transfer.settings.training import TOKENS_AT_ONCE
from hf_transfer.targets.table import target_of_model
from hf_transfer.targets.target import Target

BATCH_SIZE = 32


class Predictor:
    """A finished model that makes predictions; made by `load`.

    Attributes:
        model: on the device on which it runs.
        modality: what a sample is.
        target: what is predicted.
        preprocessing: as in the training of the model.
    """

    def __init__(
        self, model: torch.nn.Module, modality: Modality[Any], target: Target, preprocessing: Preprocessing
    ) -> None:
        self.modality, self.target, self.preprocessing = modality, target, preprocessing
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        self._device = device or torch.device("cpu")
        # As the evaluation of a run: on a CPU more at once takes memory, and no less time.
        self._tokens_at_once = TOKENS_AT_ONCE if self._device.type == "cpu" else None
        self.model = model.eval().to(self._device)
        preprocessing.adapt_to(self.model)

    def __call__(self, samples: Sequence[Any], top: int = 3) -> list[dict[str, float]]:
        """Predict samples: for each of them the names with their numbers, most important first.

        Args:
            samples: of images: paths or pictures; of texts: strings, or tuples of two; of pairs: tuples of an image
                and a text, either of which may be None.
            top: how many names to return for a sample, at most.

        Raises:
            UserError: a sample that cannot be read.
        """
        return [dict(scores) for scores, _ in self.answers(self._samples_of(samples), top)]

    def decide(self, samples: Sequence[Any]) -> list[dict[str, Any]]:
        """What follows from the predictions of samples: the `labels` that reach their thresholds, or `intervals`.

        Args:
            samples: see `__call__`.

        Returns:
            For each sample `labels`, or `intervals` by name; empty for classes.
        """
        return [decisions for _, decisions in self.answers(self._samples_of(samples), 1)]

    def _samples_of(self, values: Sequence[Any]) -> list[Any]:
        # Letters of a text and keys of a mapping would be taken for samples.
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise user_error(
                expected="a list of samples",
                found=f"a single one: {values!r:.200}",
                do="give it in a list: [sample]",
            )
        return [self.modality.sample_of(value, self.preprocessing) for value in values]

    def files(
        self, paths: Sequence[Path], top: int = 3, wanted: Mapping[str, str | None] | None = None
    ) -> Iterator[Answer]:
        """Predict files, one batch after the other; a sample that cannot be read has a fault in place of an answer.

        Args:
            paths: files that hold samples, tables of them, folders of either, or - for lines of standard input.
            top: how many names to return for a sample, at most.
            wanted: the settings that name columns, and `encoding` and `delimiter`; those left out are as in training,
                or else found by the names of columns and in the files.

        Raises:
            UserError: a file that has no such samples, or a table that cannot be read.
        """
        return self._answered(self.modality.samples_in(paths, wanted or {}, self.preprocessing), top)

    def typed(self, samples: Typed, top: int = 3) -> Iterator[Answer]:
        """Predict samples as they are typed on a command line.

        Args:
            samples: that are in no file.
            top: how many names to return for a sample, at most.

        Raises:
            UserError: the model takes other samples, or a picture cannot be read.
        """
        return self._answered(self.modality.typed(samples, self.preprocessing), top)

    def _answered(self, samples: Iterable[LocatedSample], top: int) -> Iterator[Answer]:
        located = iter(samples)
        while batch := list(islice(located, BATCH_SIZE)):
            answers = self.answers([one.sample for one in batch if not one.fault], top)
            for one in batch:
                scores, decisions = ([], {}) if one.fault else next(answers)
                key = self.target.answered_as
                yield Answer(one.path, scores, decisions, key, one.row, one.fault, one.line, one.text)

    @torch.no_grad()
    def answers(self, samples: Sequence[Any], top: int) -> Iterator[tuple[Scores, dict[str, Any]]]:
        """Scores and what follows from them, for samples as `Preprocessing.inputs` takes them."""
        for start in range(0, len(samples), BATCH_SIZE):
            inputs = self.preprocessing.inputs(samples[start : start + BATCH_SIZE])
            moved = {name: tensor.to(self._device) for name, tensor in inputs.items()}
            parts = parts_within(moved, self._tokens_at_once)
            (outputs,) = in_parts(lambda part: [self.model(**part).logits.float().cpu()], moved, parts)
            yield from zip(self.target.answers(outputs, top), self.target.decisions(outputs), strict=True)


def load(model_name_or_path: str | Path, *, modality: str | None = None) -> Predictor:
    """Load a finished model for predictions; it runs on the GPU if there is one.

        classify = load("runs/first")
        classify(["one.jpg", "two.png"], top=3)

    Args:
        model_name_or_path: the `--output_dir` of a run, its folder `model`, a Hub id, or sample:NAME.
        modality: the recipe of the model; None: as saved with the model, or else as its configuration implies.

    Raises:
        UserError: no such model, or it cannot be read.
    """
    name = _model_of(model_name_or_path)
    chosen = modality_named(modality) if modality else modality_of(name)
    checkpoint = Checkpoint(name, task=chosen.task)
    target = target_of_model(checkpoint.config, saved_description(checkpoint).get("problem_type"))
    return Predictor(load_finished(checkpoint, target), chosen, target, chosen.saved_preprocessing(checkpoint))


def modality_of(model: str, files: Sequence[Path] = (), *, of_texts: bool = False) -> Modality[Any]:
    """The modality of a finished model: as saved with it, else by its configuration, else by the files to predict.

    Args:
        model: a folder, a Hub id, or sample:NAME.
        files: that the model is to predict.
        of_texts: it is to predict texts that are in no file.
    """
    by_name = {one.name: one for one in MODALITIES.values()}
    saved = _json_file(model, PREPROCESSING_FILE).get("modality")
    if saved in by_name:
        return by_name[str(saved)]
    suitable = modalities_of_model(model)
    if len(suitable) == 1:
        return suitable[0]
    return by_name["text" if of_texts or any(map(is_table, files)) else "image"]


def modalities_of_model(model: str) -> list[Modality[Any]]:
    """The modalities that a model can be used for, finished or not, by the `model_type` of its configuration.

    Args:
        model: a folder, a Hub id, or sample:NAME.
    """
    config = _json_file(model, "config.json")
    if config.get("model_type") in (DeepProbeConfig.model_type, PooledProbeConfig.model_type):
        config = config.get("backbone_config", {})
    # As timm saves it, a configuration names only the architecture.
    model_type = config.get("model_type") or (timm_models.MODEL_TYPE if "pretrained_cfg" in config else None)
    # A dual encoder is not yet a classifier of pairs.
    tasks = {"pair": ("image-text-classification", "dual-encoder")}
    return [
        one
        for one in MODALITIES.values()
        if any(TASKS[task].takes(str(model_type)) for task in tasks.get(one.name, (one.task,)))
    ]


def _json_file(model: str, name: str) -> dict[str, Any]:
    """A JSON file of a model; empty if it cannot be read: loading the model then raises the error."""
    path = (backbone_folder(model) if is_sample(model) else Path(model).expanduser()) / name
    if not path.is_file() and is_hub_id(model):
        cached = cached_file(
            model, name, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False, _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        path = Path(cached) if cached else path
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def predictor_for(model_name_or_path: str | Path, paths: Sequence[Path] = (), *, of_texts: bool = False) -> Predictor:
    """The predictor of a model for these files, which decide what its samples are where the model does not say.

    Args:
        model_name_or_path: see `load`.
        paths: see `Predictor.files`.
        of_texts: texts are to be predicted that are in no file.

    Raises:
        UserError: no such model, or no such table.
    """
    for path in paths:
        if is_table(path) and not path.exists():
            raise user_error(expected=f"a table in {path}", found="no such file", do="correct the path")
    name = _model_of(model_name_or_path)
    return load(name, modality=modality_of(name, paths, of_texts=of_texts).config.recipe)


def classify_files(
    model_name_or_path: str | Path,
    paths: Sequence[Path],
    *,
    top: int = 3,
    columns: Mapping[str, str | None] | None = None,
) -> list[Answer]:
    """Predict files with a finished model; for many of them, `Predictor.files` yields one answer after the other.

    Args:
        model_name_or_path: see `load`.
        paths: see `Predictor.files`.
        top: how many names to return for a sample.
        columns: see `Predictor.files`.

    Raises:
        UserError: no such model, or a file that cannot be read.
    """
    return list(predictor_for(model_name_or_path, paths).files(paths, top, columns))


def _model_of(model_name_or_path: str | Path) -> str:
    """The name of a model; of the `--output_dir` of a run the path of its folder `model`."""
    folder = Path(model_name_or_path).expanduser() / MODEL_FOLDER
    return str(folder if (folder / "config.json").is_file() else model_name_or_path)
