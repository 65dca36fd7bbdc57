"""What a finished model says of pictures that belong to no data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hf_transfer.config import mistake
from hf_transfer.data.images import BadImageError, decode
from hf_transfer.data.inputs import PixelPipeline
from hf_transfer.evaluation.run_folder import load_finished
from hf_transfer.models.pretrained import Checkpoint

BATCH_SIZE = 32


@dataclass(frozen=True)
class Answer:
    """What the model says of one picture: labels with their probabilities, most probable first."""

    path: Path
    scores: list[tuple[str, float]]


@torch.no_grad()
def classify_images(model_name_or_path: str, paths: Sequence[Path], *, top: int = 3) -> list[Answer]:
    """Classify picture files with a finished model, decoded exactly as in training.

    Args:
        model_name_or_path: the folder `OUT/model` of a run, a Hub id, or sample:NAME.
        paths: picture files.
        top: how many labels to return of each.

    Raises:
        UserError: no such model, or a file that is no readable picture; all of these are named at once.
    """
    pictures, problems = [], []
    for path in paths:
        try:
            pictures.append(decode({"bytes": None, "path": str(path)}))
        except BadImageError as error:
            problems.append(f"{path} ({error})")
    if problems:
        raise mistake(expected="readable pictures", found="; ".join(problems), do="correct or leave out these paths")
    checkpoint = Checkpoint(model_name_or_path)
    pipeline = PixelPipeline(checkpoint.processor())
    model = load_finished(model_name_or_path, None, task="image-classification").eval()
    names = checkpoint.class_names()
    answers = []
    for start in range(0, len(paths), BATCH_SIZE):
        logits = model(**pipeline.inputs(pictures[start : start + BATCH_SIZE])).logits.float()
        best = logits.softmax(-1).topk(min(top, logits.shape[-1]))
        for path, shares, numbers in zip(paths[start:], best.values.tolist(), best.indices.tolist(), strict=False):
            answers.append(Answer(path, [(names[n], share) for n, share in zip(numbers, shares, strict=True)]))
    return answers
