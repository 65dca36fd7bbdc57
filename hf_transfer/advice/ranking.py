"""Which of several pretrained models suits a task best: their order, and which of them cannot be told apart."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from hf_transfer.advice.scoring import ScoredModel, Task, score_models
from hf_transfer.advice.standing import Place, in_order, places_as_json
from hf_transfer.errors import UserError, user_error
from hf_transfer.settings.model import exists
from hf_transfer.settings.parsing import parse
from hf_transfer.settings.run import RunConfig
from hf_transfer.versions import versions

SCHEMA = 1
# A ranking solves heads, and trains nothing.
SOLVED = "linear_probe"
# Settings of a run that have no part in a ranking: `rank` sets them itself, or nothing is written.
NOT_ASKED = (
    "strategy", "model_name_or_path", "output_dir", "evaluate_only", "push_to_hub", "hub_model_id", "push_space",
    "overwrite_output_dir", "resume_from_checkpoint", "report_to",
)  # fmt: skip


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
    places: list[Place[ScoredModel]]
    failed: Mapping[str, UserError]

    @classmethod
    def of(
        cls, dataset_name: str, task: Task, scored: Sequence[ScoredModel], failed: Mapping[str, UserError]
    ) -> "ModelRanking":
        """The ranking of models that were scored on the same samples."""
        return cls(dataset_name, task, in_order(scored, lambda model: model.probe), failed)

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
            "models": places_as_json(self.places, _as_json),
            "failed": {name: str(error) for name, error in self.failed.items()},
            "versions": versions(),
        }


def _as_json(model: ScoredModel) -> dict[str, Any]:
    """What is known of a model beside its name."""
    others = ("name", "column", "probe", "scores")
    return {
        "features": model.column,
        "probe": {
            "score": model.probe.score,
            "standard_error": model.probe.standard_error,
            "regularisation": model.probe.regularisation,
            "metrics": model.probe.predictions.metrics(),
        },
        **model.scores._asdict(),
        **{name: value for name, value in vars(model).items() if name not in others},
    }


def rank(
    configs: dict[str, RunConfig], data: datasets.DatasetDict | None = None, report: Callable[[str], None] = print
) -> ModelRanking:
    """Rank pretrained models by heads that are solved on their frozen features, out of fold on training rows.

    Reference: Renggli, Pinto, Rimanic, Puigcerver, Riquelme, Zhang and Lucic, "Which model to transfer? Finding the
    needle in the growing haystack", CVPR 2022, https://arxiv.org/abs/2010.06402 (probes of candidates).

    Args:
        configs: the settings of a run with each model, by its name; a head is solved, whatever strategy they name.
        data: a data set in memory; None: what the settings name.
        report: takes a sentence before each model.

    Raises:
        UserError: none of the models can be used, or the data cannot.
    """
    solved = {name: config.replaced(strategy=SOLVED).without_ineffective() for name, config in configs.items()}
    scored, failed, task = score_models(solved, data, report)
    return ModelRanking.of(next(iter(solved.values())).data.dataset_name, task, list(scored.values()), failed)


def rank_by_settings(
    config_class: type[RunConfig], models: Sequence[str], data: datasets.DatasetDict | None, **settings: Any
) -> ModelRanking:
    """See `rank`, here with settings by name, for Python programs."""
    _check(config_class, models, list(settings))
    fixed = {"model_name_or_path": models[0], "output_dir": "none", "strategy": SOLVED}
    config = config_class.of(**fixed, **settings)
    return rank({model: config.replaced(model_name_or_path=model) for model in models}, data)


def configs_of(
    config_class: type[RunConfig], models: Sequence[str], flags: Sequence[str], strategy: str = SOLVED
) -> dict[str, RunConfig]:
    """The settings of a run with each model, by the model's name; nothing is published, and no tracker is started.

    Args:
        config_class: the settings of a run with such models.
        models: their names.
        flags: other settings of these runs, as on a command line.
        strategy: of the runs.

    Raises:
        UserError: a model is named twice, or a setting is wrong or has no part in a ranking.
    """
    given = [flag.partition("=")[0].removeprefix("--").replace("-", "_") for flag in flags if flag.startswith("--")]
    _check(config_class, models, given, strategy)
    fixed_flags = ["--model_name_or_path", models[0], "--output_dir", "none", "--strategy", strategy]
    config = parse(config_class, [*flags, *fixed_flags, "--report_to", "none"]).replaced(
        push_to_hub=False, push_space=False, hub_model_id=None, overwrite_output_dir=False
    )
    return {model: config.replaced(model_name_or_path=model) for model in models}


def _check(config_class: type[RunConfig], models: Sequence[str], given: Sequence[str], strategy: str = SOLVED) -> None:
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
            do="say --race_strategy: it is that of --race" if refused[0] == "strategy" and strategy != SOLVED
            else f"leave --{refused[0]} out",
        )  # fmt: skip
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


def folder_of_model(name: str) -> str:
    """A name for a folder of a run with this model."""
    return Path(name).name.replace(":", "-")
