"""The table of targets: what can be predicted, by problem type."""

from typing import Any

from hf_transfer.errors import user_error
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.target import Target

TARGETS: dict[str, type[Target]] = {Classes.problem_type: Classes}


def target_of(problem_type: str | None, feature: object) -> type[Target]:
    """The target that the settings name, or else that of a column of this type.

    Args:
        problem_type: a key of `TARGETS`; None: inferred from the column.
        feature: the type of the column, as `datasets` has it.

    Raises:
        UserError: no such target.
    """
    if problem_type is None:
        return next((kind for kind in TARGETS.values() if kind.recognises(feature)), Classes)
    if problem_type not in TARGETS:
        raise user_error(
            expected=f"for --problem_type one of {', '.join(TARGETS)}", found=problem_type, do="use one of these"
        )
    return TARGETS[problem_type]


def target_of_model(config: Any, problem_type: str | None = None) -> Target:
    """The target of a finished model, from its transformers configuration; without a problem type, classes.

    Args:
        config: of the model.
        problem_type: as it was saved with the model; None: as the configuration says.
    """
    return TARGETS.get(str(problem_type or getattr(config, "problem_type", None)), Classes).of_model(config)
