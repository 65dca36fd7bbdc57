"""Which of several pretrained models suits a task best: their order, and which of them cannot be told apart."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from hf_transfer.advice.scoring import ScoredModel, Task, score_models, solving
from hf_transfer.advice.standing import Place, in_order, places_as_json
from hf_transfer.errors import UserError
from hf_transfer.settings.run import RunConfig
from hf_transfer.versions import versions

SCHEMA = 1


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
            "scores_are_errors": self.task.target.scores_are_errors,
            "rows": rows,
            "folds": {"count": int(self.task.folds.of_rows.max()) + 1, "repeats": repeats},
            "notes": self.task.notes,
            "models": places_as_json(self.places, _as_json),
            "failed": {name: str(error) for name, error in self.failed.items()},
            "versions": versions(),
        }


def _as_json(model: ScoredModel) -> dict[str, Any]:
    """What is known of a model beside its name."""
    others = ("name", "column", "probe", "scores", "names")
    return {
        **(model.names if len(model.names) > 1 else {}),
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
    solved = {name: solving(config) for name, config in configs.items()}
    scored, failed, task = score_models(solved, data, report)
    return ModelRanking.of(next(iter(solved.values())).data.dataset_name, task, list(scored.values()), failed)
