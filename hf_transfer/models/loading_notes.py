"""Sentences for the report on checkpoints that are loaded otherwise than by transformers' own classifier."""

from collections.abc import Iterator

from transformers import PretrainedConfig

from hf_transfer.models.encoders import Pooling, Rule
from hf_transfer.models.sentence_encoders import NamedPooling
from hf_transfer.models.tasks import Task

READ_BY_HEAD = {"cls": "the first token", "last": "the last token", "mean": "the mean of all tokens"}


def loaded_otherwise(
    task: Task, backbone: PretrainedConfig, pooling: Pooling | None, named: NamedPooling | None
) -> Iterator[str]:
    """What is done otherwise, and why.

    Args:
        task: of the checkpoint.
        backbone: its configuration.
        pooling: what the head of a text model reads; None: what transformers' classifier reads.
        named: the pooling that the files of a text model name.
    """
    kind, rule = backbone.model_type, task.rule_of(backbone)
    if task.lacks_class(backbone):
        yield f"transformers has no classifier for a {kind} model: its head is ours, and its code is saved with it."
    if named is not None and named.pooling is None:
        fault = f"names the pooling {named.named}, which is not available" if named.named else "names no pooling"
        yield f"{named.file} of the model {fault}: the head reads what transformers' classifier for it reads."
    elif named is not None and named.pooling is not None:
        yield f"The head reads {READ_BY_HEAD[named.pooling]}, as {named.file} of the model says."
    elif pooling is not None and rule is not None and pooling == rule.pooling:
        yield f"The head reads {READ_BY_HEAD[pooling]}: {rule.reason}."


def retyped_as(kind: str, rule: Rule) -> str:
    """That a checkpoint is loaded as another type, and why."""
    return f"The model is loaded and saved as a {kind}: {rule.reason}."
