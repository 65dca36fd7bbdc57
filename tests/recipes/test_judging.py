"""Whole runs on data whose test split has no labels, and finished models that are judged on other data."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
from PIL import Image

import hf_transfer as ht
from hf_transfer.evaluation.results import Results
from tests.data.conftest import encoded
from tests.tiny_models import save_checkpoint
from tests.tiny_text_models import save_text_checkpoint

RECIPES = ("vision", "text", "multimodal")
NAMES = ("red", "green", "blue")
LABELS: dict[str, Any] = {
    "classes": datasets.ClassLabel(names=list(NAMES)),
    "labels": datasets.List(datasets.ClassLabel(names=list(NAMES))),
    "numbers": datasets.Value("float64"),
}


def sample(kind: int, number: int) -> dict[str, Any]:
    """A picture and a text that tell the kind."""
    pixels = np.random.default_rng((kind, number)).integers(0, 90, (16, 16, 3))
    pixels[..., kind] += 150
    image = {"bytes": encoded(Image.fromarray(pixels.astype(np.uint8))), "path": None}
    return {"image": image, "text": f"word{5 + kind} word{20 + number % 30}"}


def rows(recipe: str, count: int, label: Any, feature: Any, start: int = 0) -> datasets.Dataset:
    """Samples of all kinds in turn; `label` makes the label of a kind."""
    columns: dict[str, Any] = {"image": datasets.Image(), "text": datasets.Value("string"), "label": feature}
    lacking = {"vision": ["text"], "text": ["image"], "multimodal": []}[recipe]
    made = [sample(n % 3, start + n) | {"label": label(n % 3)} for n in range(count)]
    return datasets.Dataset.from_list(made, features=datasets.Features(columns)).remove_columns(lacking)


def label_of(target: str, kind: int) -> Any:
    return {"classes": kind, "labels": [kind, (kind + 1) % 3][: 1 + kind % 2], "numbers": kind + 0.5}[target]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    vision, text = str(save_checkpoint(folder / "vit")), str(save_text_checkpoint(folder / "bert"))
    return {"vision": vision, "text": text, "multimodal": (vision, text)}


@pytest.fixture(scope="module", params=[("text", target) for target in LABELS] + [("vision", "classes")]
                + [("multimodal", "classes")], ids=" ".join)  # fmt: skip
def finished(
    request: pytest.FixtureRequest, models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, str, Path]:
    """A run on data whose test split has no column of labels."""
    recipe, target = request.param
    folder = tmp_path_factory.mktemp("run")
    data = datasets.DatasetDict({
        "train": rows(recipe, 60, lambda kind: label_of(target, kind), LABELS[target]),
        "test": rows(recipe, 7, lambda kind: label_of(target, kind), LABELS[target], 500).remove_columns("label"),
    })  # fmt: skip
    ht.train(
        data, models[recipe], output_dir=folder / "out", modality=recipe, cache_dir=str(folder / "cache"),
        strategy="linear_probe" if recipe == "multimodal" else "full",
    )  # fmt: skip
    return recipe, target, folder / "out"


def judge(recipe: str, out: Path, data: dict[str, datasets.Dataset], where: Path) -> Results:
    run = ht.train(
        datasets.DatasetDict(data), str(out / "model"), output_dir=where, modality=recipe, evaluate_only=True,
        cache_dir=str(where.parent / "cache"),
    )  # fmt: skip
    return Results.read(Path(run.config.output.output_dir))


def test_a_test_split_without_labels_is_predicted_in_its_order(finished: tuple[str, str, Path]) -> None:
    recipe, target, out = finished
    table = pandas.read_csv(out / "predictions.csv", keep_default_na=False)
    assert table["row"].tolist() == list(range(1, 8))
    samples = [sample(n % 3, 500 + n) for n in range(7)]
    texts = [one["text"] for one in samples]
    if recipe == "text":
        predictor = ht.load(out)
        answers, decisions = predictor(texts, top=1), predictor.decide(texts)
        expected = {
            "classes": [next(iter(answer)) for answer in answers],
            "labels": [";".join(decision.get("labels", [])) for decision in decisions],
            "numbers": [answer.get("label") for answer in answers],
        }[target]
        assert table["label"].tolist() == (pytest.approx(expected, abs=1e-5) if target == "numbers" else expected)
    sentence = "Split test has no labels (7 rows): its predictions are in predictions.csv."
    assert f"- {sentence}" in (out / "report.md").read_text(encoding="utf-8")
    assert sentence in Results.read(out).notes
    assert set(Results.read(out).samples) == {"train", "validation", "test"}


def test_a_finished_model_is_judged_on_all_rows_by_the_names_of_its_classes(
    finished: tuple[str, str, Path], tmp_path: Path
) -> None:
    """The same samples, as they were numbered in training and otherwise, have the same figures."""
    recipe, target, out = finished
    judged_rows = rows(recipe, 30, lambda kind: label_of(target, kind), LABELS[target], 900)
    first = judge(recipe, out, {"test": judged_rows}, tmp_path / "first")
    assert (first.samples, first.masked) == ({"test": 30}, {"test": 0})
    assert list(first.metrics) == ["test"]
    assert first.baseline is not None
    assert first.baseline.name.endswith("of the judged samples themselves")
    assert "30" in (tmp_path / "first/report.md").read_text(encoding="utf-8")
    other = judged_rows
    if target != "numbers":
        order = [1, 2, 0]
        other = judged_rows.map(
            lambda row: {"label": np.asarray(order)[row["label"]].tolist()},
            features=datasets.Features(dict(judged_rows.features) | {"label": _reordered(LABELS[target], order)}),
        )
    again = judge(recipe, out, {"train": other}, tmp_path / "again")
    assert again.metrics == first.metrics
    assert again.samples == {"test": 30}
    assert any(note.startswith("Judged: all 30 rows of split train, the only one") for note in again.notes)


def _reordered(feature: Any, order: list[int]) -> Any:
    """The same names, of which the one of number n has the number order[n]."""
    names = datasets.ClassLabel(names=[NAMES[order.index(number)] for number in range(3)])
    return names if isinstance(feature, datasets.ClassLabel) else datasets.List(names)


def test_some_of_the_classes_can_be_judged_and_others_are_refused(
    finished: tuple[str, str, Path], tmp_path: Path
) -> None:
    recipe, target, out = finished
    if target != "classes":
        pytest.skip("for classes")
    some = rows(recipe, 30, lambda kind: ["blue", "green", "blue"][kind], datasets.Value("string"))
    assert judge(recipe, out, {"test": some}, tmp_path / "some").samples == {"test": 30}
    others = rows(recipe, 6, lambda kind: ["blue", "mauve", "blue"][kind], datasets.Value("string"))
    with pytest.raises(ht.UserError, match=r"'mauve' in 2 rows, first in row 1 of split 'test'"):
        judge(recipe, out, {"test": others}, tmp_path / "others")
