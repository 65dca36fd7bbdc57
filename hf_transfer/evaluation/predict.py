"""What a finished model says of pictures, texts and pairs of both that belong to no data set."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from transformers.utils.hub import cached_file

from hf_transfer.config import mistake
from hf_transfer.data.columns import IMAGE_NAMES, TEXT_NAMES
from hf_transfer.data.hub_access import is_hub_id
from hf_transfer.data.images import BadImageError, decode
from hf_transfer.data.inputs import PixelPipeline
from hf_transfer.data.pair_batches import pair_inputs
from hf_transfer.data.pairs import PATH_NAME
from hf_transfer.data.tokens import TokenPipeline
from hf_transfer.evaluation.run_folder import load_finished
from hf_transfer.models.fusion import FusionConfig
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.models.pretrained_pair import pipelines_of

BATCH_SIZE = 32
TABLES = {".csv": ",", ".tsv": "\t"}
Scores = list[tuple[str, float]]
Columns = tuple[str | None, str | None]


@dataclass(frozen=True)
class Answer:
    """What the model says of one sample.

    Attributes:
        path: the file that it is, or is in.
        scores: labels with their probabilities, most probable first.
        row: of a text: its place in the file, counted from 1 behind the names of the columns.
    """

    path: Path
    scores: Scores
    row: int | None = None

    def as_json(self) -> dict[str, Any]:
        """For a line of JSON."""
        place = {} if self.row is None else {"row": self.row}
        return {"path": str(self.path), **place, "scores": dict(self.scores)}


def classify_files(
    model_name_or_path: str, paths: Sequence[Path], *, top: int = 3, columns: Columns = (None, None)
) -> list[Answer]:
    """Classify pictures, or what is in tables, with a finished model: texts, or texts with paths of images.

    Args:
        model_name_or_path: the folder `OUT/model` of a run, a Hub id, or sample:NAME.
        paths: files, all of pictures or all CSV or TSV.
        top: how many labels to return of each.
        columns: of the texts, and of their pairs, in tables; None finds the first by its name, and knows no pairs.
            The second is that of the images, for a model of images with texts.

    Raises:
        UserError: no such model, or a file that cannot be read.
    """
    tables = [path for path in paths if path.suffix.lower() in TABLES]
    if not tables:
        return classify_images(model_name_or_path, paths, top=top)
    if len(tables) < len(paths):
        raise mistake(
            expected="pictures, or tables of texts",
            found=f"both: {next(path for path in paths if path not in tables)} and {tables[0]}",
            do="ask for them one after the other",
        )
    if is_of_pairs(model_name_or_path):
        pairs = [pair for path in paths for pair in _pairs_in(path, columns)]
        found = classify_pairs(model_name_or_path, [pair for _, _, pair in pairs], top=top)
        return [Answer(path, scores, row) for (path, row, _), scores in zip(pairs, found, strict=True)]
    places, texts = [], []
    for path in paths:
        rows = _texts_in(path, columns)
        texts += rows
        places += [(path, number) for number in range(1, len(rows) + 1)]
    found = classify_texts(model_name_or_path, texts, top=top)
    return [Answer(path, scores, row) for (path, row), scores in zip(places, found, strict=True)]


def classify_images(model_name_or_path: str, paths: Sequence[Path], *, top: int = 3) -> list[Answer]:
    """Classify picture files with a finished model, decoded exactly as in training.

    Args:
        model_name_or_path: the folder `OUT/model` of a run, a Hub id, or sample:NAME.
        paths: picture files.
        top: how many labels to return of each.

    Raises:
        UserError: no such model, or a file that is no readable picture; all of these are named at once.
    """
    pictures = _decoded(paths)
    checkpoint = Checkpoint(model_name_or_path)
    pipeline = PixelPipeline(checkpoint.processor())

    def inputs(some: Sequence[Image]) -> Mapping[str, torch.Tensor]:
        return pipeline.inputs(list(some))

    return [Answer(path, scores) for path, scores in zip(paths, _said(checkpoint, pictures, inputs, top), strict=True)]


def classify_texts(model_name_or_path: str, texts: Sequence[tuple[str, ...]], *, top: int = 3) -> list[Scores]:
    """Classify texts, or pairs of texts, with a finished model.

    Args:
        model_name_or_path: the folder `OUT/model` of a run, a Hub id, or sample:NAME.
        texts: tuples of one text, or of two.
        top: how many labels to return of each.

    Raises:
        UserError: no such model.
    """
    checkpoint = Checkpoint(model_name_or_path, task="text-classification")
    pipeline = TokenPipeline(checkpoint.tokenizer(), model_limit=checkpoint.longest_input)
    return list(_said(checkpoint, texts, pipeline.inputs, top))


def is_of_pairs(model_name_or_path: str) -> bool:
    """Whether a finished model takes images with texts."""
    path = Path(model_name_or_path).expanduser() / "config.json"
    if not path.is_file():
        if not is_hub_id(model_name_or_path):
            return False
        found = cached_file(
            model_name_or_path, "config.json", _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False, _raise_exceptions_for_connection_errors=False,
        )  # fmt: skip
        if found is None:
            return False
        path = Path(found)
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Whoever loads the model says what is wrong with it.
        return False
    return isinstance(told, dict) and told.get("model_type") == FusionConfig.model_type


def classify_pairs(
    model_name_or_path: str, pairs: Sequence[tuple[Path | None, str | None]], *, top: int = 3
) -> list[Scores]:
    """Classify images with texts with a finished model, decoded and cut exactly as in training.

    Args:
        model_name_or_path: the folder `OUT/model` of a run, or a Hub id.
        pairs: a picture file and a text, either of which may be None.
        top: how many labels to return of each.

    Raises:
        UserError: no such model, a pair of nothing, or a file that is no readable picture; all of these at once.
    """
    paths = [image for image, _ in pairs if image is not None]
    decoded = iter(_decoded(paths))
    samples = [(None if image is None else next(decoded), text) for image, text in pairs]
    checkpoint = Checkpoint(model_name_or_path, task="image-text-classification")
    pixels, tokens = pipelines_of(checkpoint)

    def inputs(some: Sequence[tuple[Image | None, str | None]]) -> Mapping[str, torch.Tensor]:
        return pair_inputs(pixels, tokens, some)

    return list(_said(checkpoint, samples, inputs, top))


@torch.no_grad()
def _said(
    checkpoint: Checkpoint, samples: Sequence[Any], inputs: Callable[[Sequence[Any]], Mapping[str, torch.Tensor]],
    top: int,
) -> Iterator[Scores]:  # fmt: skip
    model = load_finished(checkpoint).eval()
    names = checkpoint.class_names()
    for start in range(0, len(samples), BATCH_SIZE):
        logits = model(**inputs(samples[start : start + BATCH_SIZE])).logits.float()
        best = logits.softmax(-1).topk(min(top, logits.shape[-1]))
        for shares, numbers in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            yield [(names[number], share) for number, share in zip(numbers, shares, strict=True)]


def _decoded(paths: Sequence[Path]) -> list[Image]:
    pictures, problems = [], []
    for path in paths:
        try:
            pictures.append(decode({"bytes": None, "path": str(path)}))
        except BadImageError as error:
            problems.append(f"{path} ({error})")
    if problems:
        raise mistake(expected="readable pictures", found="; ".join(problems), do="correct or leave out these paths")
    return pictures


def _pairs_in(path: Path, columns: Columns) -> list[tuple[Path, int, tuple[Path | None, str | None]]]:
    """The pairs of a table, each with its place; paths of images are relative to the table."""
    rows, existing = _rows_in(path)
    text = columns[0] or next((name for name in TEXT_NAMES if name in existing), None)
    image = columns[1] or next((name for name in (PATH_NAME, *IMAGE_NAMES) if name in existing), None)
    wanted = [name for name in (text, image) if name is not None]
    if not wanted or (missing := [name for name in wanted if name not in existing]):
        raise mistake(
            expected=f"in {path} a column {missing[0] if wanted else 'of texts, or one of paths of images'}",
            found=f"the columns {', '.join(existing)}" if existing else "none",
            do="name them in --text_column_name and --image_column_name",
        )
    found = []
    for number, row in enumerate(rows, start=1):
        file, words = (row[name] if name else "" for name in (image, text))
        found.append((path, number, (path.parent / file if file else None, words or None)))
    return found


def _texts_in(path: Path, columns: Columns) -> list[tuple[str, ...]]:
    """The texts of a table, or the pairs."""
    rows, existing = _rows_in(path)
    usual = [name for name in TEXT_NAMES if name in existing] or existing[: len(existing) == 1]
    chosen = [columns[0] or next(iter(usual), ""), *([columns[1]] if columns[1] else [])]
    if missing := [name for name in chosen if name not in existing]:
        raise mistake(
            expected=f"in {path} a column {missing[0] or 'of texts'}",
            found=f"the columns {', '.join(existing)}" if existing else "none",
            do="name it in --text_column_name (and --text_pair_column_name)",
        )
    return [tuple(row[name] or "" for name in chosen) for row in rows]


def _rows_in(path: Path) -> tuple[list[dict[str, str]], list[str]]:
    """The rows of a table, and the names of its columns."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, delimiter=TABLES[path.suffix.lower()])
            return list(table), list(table.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise mistake(
            expected=f"a table of texts in UTF-8 in {path}", found=str(error), do="correct the path, or the file"
        ) from error
