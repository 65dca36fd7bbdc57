"""Which of several pretrained models suits a task best: their order, and which of them cannot be told apart."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from hf_transfer.advice.scoring import ScoredModel, Task, score_models
from hf_transfer.data.complete_files import put
from hf_transfer.errors import UserError, user_error
from hf_transfer.settings.model import exists
from hf_transfer.settings.parsing import parse
from hf_transfer.settings.run import RunConfig
from hf_transfer.targets.intervals import paired_interval
from hf_transfer.targets.target import Interval
from hf_transfer.versions import versions

SCHEMA = 1
# Settings of a run that have no part in a ranking: `rank` sets them itself, or nothing is written.
NOT_ASKED = (
    "strategy", "model_name_or_path", "output_dir", "evaluate_only", "push_to_hub", "hub_model_id", "push_space",
    "overwrite_output_dir", "resume_from_checkpoint", "report_to",
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A model in a ranking.

    Attributes:
        model: what is known of it.
        behind: how much worse it is than the first model, 95 % interval of the mean difference of scores; None: it is
            the first.
    """

    model: ScoredModel
    behind: Interval | None

    @property
    def is_equal(self) -> bool:
        """Whether the samples do not tell it from the first model."""
        return self.behind is not None and self.behind[0] <= 0 <= self.behind[1]


@dataclass(frozen=True)
class ModelRanking:
    """Models from the best to the worst, by their probes on the same samples.

    Attributes:
        dataset_name: of the data.
        task: the samples.
        places: the models that were scored; of equal scores, the one that was named first comes first.
        failed: why the others could not be used, by name.
    """

    dataset_name: str
    task: Task
    places: list[Place]
    failed: Mapping[str, UserError]

    @classmethod
    def of(
        cls, dataset_name: str, task: Task, scored: Sequence[ScoredModel], failed: Mapping[str, UserError]
    ) -> "ModelRanking":
        """The ranking of models that were scored on the same samples."""
        first, *others = sorted(scored, key=lambda model: -model.probe.score)
        places = [Place(first, None)]
        for model in others:
            behind = paired_interval(first.probe.scores, model.probe.scores, first.probe.units)
            places.append(Place(model, behind))
        return cls(dataset_name, task, places, failed)

    def as_json(self) -> dict[str, Any]:
        """Everything that a program may want to know, as JSON."""
        repeats, rows = self.task.folds.of_rows.shape
        return {
            "schema": SCHEMA,
            "dataset_name": self.dataset_name,
            "predicts": self.task.target.describe(),
            "score": self.task.target.score_title,
            "rows": rows,
            "folds": {"count": int(self.task.folds.of_rows.max()) + 1, "repeats": repeats},
            "notes": self.task.notes,
            "models": [_place_as_json(number, place) for number, place in enumerate(self.places, start=1)],
            "failed": {name: str(error) for name, error in self.failed.items()},
            "versions": versions(),
        }

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        put(path, (json.dumps(self.as_json(), indent=2, ensure_ascii=False) + "\n").encode())


def _place_as_json(number: int, place: Place) -> dict[str, Any]:
    model = place.model
    return {
        "place": number,
        "model_name_or_path": model.name,
        "equal_to_first": place.is_equal or place.behind is None,
        "behind_first": place.behind,
        "features": model.column,
        "probe": {
            "score": model.probe.score,
            "standard_error": model.probe.standard_error,
            "regularisation": model.probe.regularisation,
            "metrics": model.probe.predictions.metrics(),
        },
        **model.scores._asdict(),
        **{name: value for name, value in vars(model).items() if name not in ("name", "column", "probe", "scores")},
    }


def rank(
    config_class: type[RunConfig], models: Sequence[str], flags: Sequence[str],
    data: datasets.DatasetDict | None = None, report: Callable[[str], None] = print,
) -> ModelRanking:  # fmt: skip
    """Rank pretrained models by heads that are solved on their frozen features, out of fold on training rows.

    Reference: Renggli, Pinto, Rimanic, Puigcerver, Riquelme, Zhang and Lucic, "Which model to transfer? Finding the
    needle in the growing haystack", CVPR 2022, https://arxiv.org/abs/2010.06402 (probes of candidates).

    Args:
        config_class: the settings of a run with such models.
        models: their names.
        flags: other settings of these runs, as on a command line.
        data: a data set in memory; None: what the settings name.
        report: takes a sentence before each model.

    Raises:
        UserError: a model is named twice, none can be used, or a setting is wrong.
    """
    given = [flag.partition("=")[0].removeprefix("--").replace("-", "_") for flag in flags if flag.startswith("--")]
    _check(config_class, models, given)
    fixed_flags = ["--model_name_or_path", models[0], "--output_dir", "none", "--strategy", "linear_probe"]
    # Nothing is published, and no tracker is started.
    config = parse(config_class, [*flags, *fixed_flags, "--report_to", "none"]).replaced(
        push_to_hub=False, push_space=False, hub_model_id=None, overwrite_output_dir=False
    )
    return _ranking(config, models, data, report)


def rank_by_settings(
    config_class: type[RunConfig], models: Sequence[str], data: datasets.DatasetDict | None, **settings: Any
) -> ModelRanking:
    """See `rank`, here with settings by name."""
    _check(config_class, models, list(settings))
    fixed = {"model_name_or_path": models[0], "output_dir": "none", "strategy": "linear_probe"}
    return _ranking(config_class.of(**fixed, **settings), models, data, print)


def _ranking(
    config: RunConfig, models: Sequence[str], data: datasets.DatasetDict | None, report: Callable[[str], None]
) -> ModelRanking:
    """The ranking of models with each of which a run with these settings would solve a head."""
    configs = {model: config.replaced(model_name_or_path=model) for model in models}
    scored, failed, task = score_models(configs, data, report)
    return ModelRanking.of(config.data.dataset_name, task, list(scored.values()), failed)


def _check(config_class: type[RunConfig], models: Sequence[str], given: Sequence[str]) -> None:
    """Refuse samples without a head that can be solved, settings that have no part in a ranking, and a model twice."""
    if not config_class.has_simple_head:
        raise user_error(
            expected="models of images, or of texts",
            found="images with texts, whose head is no single layer that can be solved",
            do="rank models for each part alone: --recipe vision, or --recipe text",
        )
    if refused := [name for name in given if name in NOT_ASKED]:
        raise user_error(
            expected="settings of data, samples and batches: a ranking solves heads, and saves no model",
            found=f"--{refused[0]}",
            do=f"leave --{refused[0]} out",
        )
    _refuse_twice(models)


def _refuse_twice(models: Sequence[str]) -> None:
    names: dict[str, str] = {}
    for model in models:
        place = str(Path(model).expanduser().resolve()) if exists(model) else model
        if place in names:
            raise user_error(
                expected="each model once in --models",
                found=model if names[place] == model else f"{names[place]} and {model}, which are the same",
                do="leave one of them out",
            )
        names[place] = model
