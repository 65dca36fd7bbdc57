"""What the head of a classifier reads, and sentences on what is done otherwise than by transformers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from transformers import PretrainedConfig

from hf_transfer.models.encoders import Pooling, Rule
from hf_transfer.models.modeling_deep_probe import DeepProbeConfig
from hf_transfer.models.pooling import backbone_config, check_pooling, default_pooling, is_normalized, pooling_of
from hf_transfer.models.sentence_encoders import MODULES_FILE, NamedPooling, named_pooling
from hf_transfer.models.tasks import TASKS, Task

# `own`: what the checkpoint was trained with, if its files or our table say that; `class`: what transformers'
# classifier reads, if there is one.
Wanted = Pooling | Literal["own", "class"]
READ_BY_HEAD = {"cls": "the first token", "last": "the last token", "mean": "the mean of all tokens"}


class HeadInput(NamedTuple):
    """What a head reads.

    Attributes:
        pooling: of texts; None: what transformers' classifier reads.
        notes: sentences on what is done otherwise than by that classifier, and why.
        is_movable: whether another head could read the same model at other depths, as a deep probe does.
        is_by_files: whether files of the checkpoint could have named the pooling.
        normalized: whether the pooled vectors are scaled to one length.
    """

    pooling: Pooling | None
    notes: tuple[str, ...]
    is_movable: bool
    is_by_files: bool = False
    normalized: bool = False


def head_input(
    name: str, config: PretrainedConfig, task: Task, wanted: Wanted, file: Callable[[str], Path | None] | None,
    *, is_solved: bool = False,
) -> HeadInput:  # fmt: skip
    """What the head of a checkpoint reads.

    Args:
        name: the checkpoint, as the user names it.
        config: its configuration.
        task: what it is loaded for.
        wanted: by the settings.
        file: gives a file of the checkpoint by its name; None: its files do not count.
        is_solved: whether the head is solved while all else stays: only then vectors are scaled to one length.

    Raises:
        UserError: a pooling that does not work with the model.
    """
    if isinstance(config, DeepProbeConfig):
        return HeadInput(None, (), is_movable=False)
    backbone, saved, named, by_files = backbone_config(config), pooling_of(config), None, False
    rule, lacks_class = task.rule_of(backbone), task.lacks_class(backbone)
    pooling: Pooling | None
    normalized = False
    if wanted != "own" and wanted != "class":
        pooling = wanted
    elif saved is not None or task is not TASKS["text-classification"]:
        pooling, normalized = saved, is_normalized(config)
    else:
        by_files = wanted == "own" and file is not None
        named = named_pooling(file) if by_files and file is not None else None
        by_table = lacks_class or (rule is not None and wanted == "own")
        pooling = default_pooling(backbone) if by_table else None
        if named is not None and named.pooling is not None:
            # Fine-tuning is worse with it: see docs/benchmarks.md.
            pooling, normalized = named.pooling, named.normalized and is_solved
    if pooling is not None:
        check_pooling(name, config, pooling)
    is_result = config is not backbone
    # Settings that name a pooling say where the head is.
    is_movable = wanted in ("own", "class")
    # What is said of a result stands in the report of its run.
    notes = () if is_result else tuple(_done_otherwise(backbone, lacks_class, rule, pooling, named, normalized))
    return HeadInput(pooling, notes, is_movable, by_files, normalized)


def retyped_as(kind: str, rule: Rule) -> str:
    """That a checkpoint is loaded as another type, and why."""
    return f"The model is loaded and saved as a {kind}: {rule.reason}."


def _done_otherwise(
    backbone: PretrainedConfig,
    lacks_class: bool,
    rule: Rule | None,
    pooling: Pooling | None,
    named: NamedPooling | None,
    normalized: bool,
) -> Iterator[str]:
    if lacks_class:
        kind = backbone.model_type
        yield f"transformers has no classifier for a {kind} model: its head is ours, and its code is saved with it."
    if named is not None and named.pooling is None:
        fault = f"names the pooling {named.named}, which is not available" if named.named else "names no pooling"
        yield f"{named.file} of the model {fault}: the head reads what transformers' classifier for it reads."
    elif named is not None and named.pooling is not None:
        yield f"The head reads {READ_BY_HEAD[named.pooling]}, as {named.file} of the model says."
        if normalized:
            yield f"{MODULES_FILE} of the model also names Normalize: what the head reads is scaled to one length."
        if named.leaves_out_prompt and named.pooling == "mean":
            yield f"{named.file} leaves the tokens of a prompt out of the mean (include_prompt): here they are in it."
        if named.not_loaded:
            are = "are" if len(named.not_loaded) > 1 else "is"
            yield (
                f"{MODULES_FILE} of the model also names {' and '.join(named.not_loaded)}, which {are} not loaded: the "
                "head reads what the pooling makes of the last hidden states."
            )
    elif pooling is not None and rule is not None and pooling == rule.pooling:
        yield f"The head reads {READ_BY_HEAD[pooling]}: {rule.reason}."
