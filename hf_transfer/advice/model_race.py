"""Pretrained models fine-tuned on the same rows: what a ranking by solved heads cannot say."""

import gc
import hashlib
import io
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import datasets
import numpy as np
import numpy.typing as npt

from hf_transfer.advice.candidates import folder_of_model
from hf_transfer.advice.ranking import ModelRanking
from hf_transfer.advice.standing import Place, in_order, places_as_json
from hf_transfer.data.checked import units_of_rows
from hf_transfer.data.complete_files import put
from hf_transfer.data.splits import Splits, part_of
from hf_transfer.errors import UserError
from hf_transfer.evaluation import inputs
from hf_transfer.evaluation.run_folder import MODEL_FOLDER
from hf_transfer.run import Run, open_run
from hf_transfer.settings.output import CHECKPOINTS_FOLDER
from hf_transfer.settings.run import RunConfig
from hf_transfer.settings.strategy import AUTO
from hf_transfer.targets.intervals import ScoresByUnit
from hf_transfer.targets.target import Metrics
from hf_transfer.training.predictions import predict_split

# In the folder of a run of a race: it marks that the run is finished.
RACED_FILE = "raced.json"
DIGITS_OF_SETTINGS = 8


@dataclass(frozen=True)
class RacedModel(ScoresByUnit):
    """A model that was fine-tuned on the training rows, and judged on the validation rows.

    Attributes:
        name: as it was given.
        scores: how good the answer to each validation row is, higher is better [rows].
        units: of each row: those of one unit belong together [rows].
        metrics: of the target, on the validation rows.
        best_epoch: whose weights are judged, counted from 1.
        seconds: of loading, training and judging.
    """

    name: str
    scores: npt.NDArray[np.float64]
    units: npt.NDArray[np.int64]
    metrics: Metrics
    best_epoch: int
    seconds: float

    def write(self, path: Path, config: RunConfig) -> None:
        """Write it as JSON, with what is known of the files that the run has read."""
        arrays = {"scores": self.scores.tolist(), "units": self.units.tolist()}
        put(path, json.dumps({**vars(self), **arrays, "inputs": inputs.fingerprints(config)}).encode())

    @classmethod
    def read(cls, path: Path, config: RunConfig) -> Self | None:
        """What an earlier command wrote; None: nothing, or its data or model have changed since."""
        if not path.is_file():
            return None
        content = dict(json.loads(path.read_text(encoding="utf-8")))
        if inputs.changes(config, content.pop("inputs")):
            return None
        return cls(**content | {name: np.array(content[name]) for name in ("scores", "units")})


@dataclass(frozen=True)
class Race:
    """Fine-tuned models from the best to the worst, on the same validation rows.

    Attributes:
        strategy: with which they were trained.
        score_title: what the score is.
        scores_are_errors: whether scores are errors with a minus.
        places: the models; of equal scores, the one that is better in the ranking comes first.
        failed: why the others could not be trained, by name.
    """

    strategy: str
    score_title: str
    scores_are_errors: bool
    places: list[Place[RacedModel]]
    failed: Mapping[str, UserError]

    def as_json(self) -> dict[str, Any]:
        """Everything that a program may want to know, as JSON."""
        return {
            "strategy": self.strategy,
            "score": self.score_title,
            "scores_are_errors": self.scores_are_errors,
            "rows": len(self.places[0].model.scores) if self.places else 0,
            "models": places_as_json(
                self.places,
                lambda model: {
                    "score": model.score,
                    "standard_error": model.standard_error,
                    "metrics": model.metrics,
                    "best_epoch": model.best_epoch,
                    "seconds": model.seconds,
                },
            ),
            "failed": {name: str(error) for name, error in self.failed.items()},
        }


def chosen_for_race(ranking: ModelRanking, models: Sequence[str], count: int) -> list[str]:
    """Which models to fine-tune: the best of the ranking, the one that was named first, then the next best ones.

    Choosing by solved heads alone can be far off, and so can choosing by general quality alone, which the order of the
    names stands for. The pair is the safest choice.

    Reference: Renggli, Pinto, Rimanic, Puigcerver, Riquelme, Zhang and Lucic, "Which model to transfer? Finding the
    needle in the growing haystack", CVPR 2022, https://arxiv.org/abs/2010.06402.

    Args:
        ranking: of the models.
        models: all names, in the order in which they were given.
        count: how many models.
    """
    best, *others = (place.model.name for place in ranking.places)
    ranked = [name for name in models if name == best or name in others]
    return list(dict.fromkeys([best, ranked[0], *others]))[:count]


@contextmanager
def folder_of_race(output: Path | None) -> Iterator[Path]:
    """A folder for the runs of a race: beside the file of the ranking, or one that is removed at the end."""
    if output is not None:
        yield output.with_name(f"{output.stem}-race")
        return
    with tempfile.TemporaryDirectory(prefix="hf_transfer-race-") as folder:
        yield Path(folder)


def race(
    configs: Mapping[str, RunConfig], ranking: ModelRanking, folder: Path,
    data: datasets.DatasetDict | None = None, report: Callable[[str], None] = print,
) -> Race:  # fmt: skip
    """Fine-tune models one after the other, and judge each on the validation rows; the test split is not read.

    Args:
        configs: the settings of a run with each model, by its name.
        ranking: of these models and others.
        folder: for the runs: what is finished there is not trained again, and an interrupted run resumes.
        data: a data set in memory; None: what the settings name.
        report: takes a sentence before each model.

    Raises:
        Interrupted: a signal asked the run to end; a checkpoint has been written.
    """
    raced: list[RacedModel] = []
    failed: dict[str, UserError] = {}
    for number, (name, config) in enumerate(configs.items(), start=1):
        report(f"[{number}/{len(configs)}] {name}: fine-tuning, {config.strategy.flag()}")
        try:
            raced.append(_raced(name, config, folder, data))
        except UserError as error:
            # A copy: the error itself holds the model, by the frames of its traceback.
            failed[name] = UserError(str(error), found=error.found)
        # One model in memory at a time: what is left of this one has reference cycles.
        gc.collect()
    strategy = " and ".join(next(iter(configs.values())).strategy.names())
    target = ranking.task.target
    return Race(strategy, target.score_title, target.scores_are_errors, in_order(raced, lambda model: model), failed)


def _raced(name: str, config: RunConfig, folder: Path, data: datasets.DatasetDict | None) -> RacedModel:
    """The model of a run, from its folder if the run is finished."""
    if config.flat().get("pooling") == AUTO:
        # As in the ranking.
        config = config.replaced(pooling="own")
    out = folder / _folder_name(name, config)
    config = config.replaced(output_dir=str(out))
    known = RacedModel.read(out / RACED_FILE, config)
    if known is not None:
        return known
    started = time.perf_counter()
    # The run itself would print its notes and each epoch.
    with open_run(config, data) as run, redirect_stdout(io.StringIO()):
        run.load_data(_without_test)
        run.load_model()
        run.choose_what_learns()
        fitted = run.train()
        raced = replace(_judged(name, run), seconds=time.perf_counter() - started + fitted.earlier_seconds)
    raced.write(out / RACED_FILE, config)
    # The commands that `rank` prints train the model with test rows to judge it by.
    for part in (MODEL_FOLDER, CHECKPOINTS_FOLDER):
        shutil.rmtree(out / part, ignore_errors=True)
    return raced


def _folder_name(model: str, config: RunConfig) -> str:
    """The name of the model, with a digest of the settings: with other settings a run has another folder."""
    settings = json.dumps(config.affecting("result"), sort_keys=True, default=str)
    return f"{folder_of_model(model)}-{hashlib.sha256(settings.encode()).hexdigest()[:DIGITS_OF_SETTINGS]}"


def _without_test(splits: Splits) -> Splits:
    nothing = np.empty(0, dtype=np.int64)
    return replace(splits, test=part_of(splits.train, nothing), unlabelled=None)


def _judged(name: str, run: Run) -> RacedModel:
    splits = run.splits
    validation = part_of(splits.validation, np.flatnonzero(splits.validation.counted))
    units = units_of_rows(validation, splits.groups, run.config, run.modality).of_rows
    predictions = predict_split(run.model, run.loaders, "validation", run.accelerator)
    best_epoch = run.fitted.best_epoch + 1
    return RacedModel(name, predictions.sample_scores(), units, predictions.metrics(), best_epoch, seconds=0.0)
