"""The table of targets: what can be predicted, by problem type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hf_transfer.errors import user_error
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.labels import LabelSets
from hf_transfer.targets.numbers import Numbers
from hf_transfer.targets.target import LabelColumns, Target

if TYPE_CHECKING:
    import datasets

TARGETS: dict[str, type[Target]] = {kind.problem_type: kind for kind in (Classes, LabelSets, Numbers)}

# What some targets save in a model's configuration, beside names and problem type.
SAVED_SETTINGS = ("thresholds", "label_separator", "label_scale", "prediction_interval")


def target_of(
    problem_type: str | None, train: datasets.Dataset, columns: LabelColumns
) -> tuple[type[Target], list[str]]:
    """The target that the settings name, or else the one that the columns are; and why, if it is not classes.

    Args:
        problem_type: a key of `TARGETS`; None: inferred.
        train: the training split.
        columns: what is to be predicted.

    Raises:
        UserError: no such target.
    """
    if problem_type is None:
        for kind in TARGETS.values():
            if reason := kind.recognises(train, columns):
                return kind, [f"Problem type: {kind.problem_type}, inferred from {columns} ({reason})."]
        return Classes, []
    if problem_type not in TARGETS:
        raise user_error(
            expected=f"for --problem_type one of {', '.join(TARGETS)}", found=problem_type, do="use one of these"
        )
    return TARGETS[problem_type], []


def write_settings(config: Any, target: Target) -> None:
    """Write a target into the configuration of its model, in which an earlier task may have left its own settings."""
    for name in SAVED_SETTINGS:
        vars(config).pop(name, None)
    config.update(target.model_settings() | target.saved_settings())


def target_of_model(config: Any, problem_type: str | None = None) -> Target:
    """The target of a finished model, from its transformers configuration; without a problem type, classes.

    Args:
        config: of the model.
        problem_type: as it was saved with the model; None: as the configuration says.
    """
    return TARGETS.get(str(problem_type or getattr(config, "problem_type", None)), Classes).of_model(config)
