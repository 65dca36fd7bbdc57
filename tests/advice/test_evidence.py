"""What is known of a model and data before training, from one pass over the training rows."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from hf_transfer.advice.evidence import Evidence, gather_evidence
from hf_transfer.advice.missed import Missed
from hf_transfer.advice.probing import learning_curve
from hf_transfer.advice.scoring import Task, probed
from hf_transfer.advice.sentences import sentences_on
from hf_transfer.advice.shortlist import shortlist_of
from hf_transfer.advice.shown_advice import draw_evidence
from hf_transfer.data.folds import Folds, halved
from hf_transfer.errors import UserError
from hf_transfer.frozen.solvers import SolverOptions
from hf_transfer.settings.run import MultimodalConfig, RunConfig, TextConfig, VisionConfig
from hf_transfer.targets.predictions import Ranking
from hf_transfer.targets.target import Target
from tests.advice.known import HELPS, evidence, texts
from tests.advice.test_ranking import split_of
from tests.conftest import Recipe
from tests.frozen.solved_heads import reference
from tests.frozen.test_out_of_fold import CLASSES, EACH_TARGET, some_folds
from tests.frozen.test_out_of_fold import Task as FeatureTask
from tests.tiny_models import save_checkpoint
from tests.tiny_text_models import save_text_checkpoint

VIT = "sample:vit-glyphs"
Mask = npt.NDArray[np.bool_]


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A tiny text model with random weights."""
    return save_text_checkpoint(tmp_path / "bert", "bert")


def config_for(folder: Path, data: Path, model: Path, **settings: object) -> TextConfig:
    return TextConfig.of(
        model_name_or_path=str(model), dataset_name=str(data), output_dir=str(folder / "out"),
        cache_dir=str(folder / "cache"), **settings,
    )  # fmt: skip


def rows_passed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each batch that passes a whole model from now on."""
    counts: list[int] = []
    called = nn.Module.__call__

    def counted(module: nn.Module, *args: object, **inputs: object) -> object:
        if "input_ids" in inputs and "Classification" in type(module).__name__:
            ids = inputs["input_ids"]
            assert isinstance(ids, torch.Tensor)
            counts.append(len(ids))
        return called(module, *args, **inputs)

    monkeypatch.setattr(nn.Module, "__call__", counted)
    return counts


def test_what_was_written_as_json_is_read_back(tmp_path: Path) -> None:
    for known in (evidence(fresh_weights=HELPS), evidence(probes=(), best="", judged=None, curve=None)):
        known.write(tmp_path / "evidence.json")
        content = json.loads((tmp_path / "evidence.json").read_text(encoding="utf-8"))
        assert Evidence.from_json(content) == known


def test_what_is_asked_of_probes() -> None:
    known = evidence(8)
    assert known.rows_per_kind == 8
    assert known.deficit_of_head is None
    assert known.best_single == known.probe("head")
    assert [known.probes[place].depth(12) for place in (0, 1)] == [1.0, 0.5]


def test_texts_of_classes(bert: Path, tmp_path: Path) -> None:
    config = config_for(tmp_path, texts(tmp_path / "data"), bert)
    known = gather_evidence(config, with_fresh_weights=True)
    assert [one.over_head is None for one in known.probes] == [one.features == "head" for one in known.probes]
    assert {f"mean_{known.blocks}", f"first_{known.blocks}"} <= {one.features for one in known.probes}
    best = known.probe(known.best)
    assert best is not None
    assert best.score == max(one.score for one in known.probes)
    assert best.score > 0.5
    assert known.judged is not None
    assert best.score == pytest.approx(np.mean(known.judged.scores))
    assert len(known.judged.rows) == len(set(known.judged.rows)) == known.rows
    assert (known.kind, known.kinds, known.rows_per_kind) == ("class", 3, known.rows / 3)
    assert known.rarest == known.rows // 3
    assert known.constant is not None
    assert known.constant.score == pytest.approx(1 / 3, abs=0.05)
    assert known.constant.gain.mean == pytest.approx(best.score - known.constant.score)
    assert known.curve is not None
    assert sorted(known.curve.rows) == list(known.curve.rows)
    assert known.fresh_weights is not None
    assert known.fresh_weights.rows == known.rows
    assert 0 < known.costs.forward < known.costs.step
    # R-Drop suits a BERT that tells classes apart.
    assert known.costs.repeats
    assert known.seconds["linear_probe"] < known.seconds["full"]
    assert not (tmp_path / "out").exists()
    again = Evidence.from_json(json.loads(json.dumps(known.as_json())))
    assert again == known


def test_a_head_that_never_names_the_rare_one_of_three_classes_is_not_enough(bert: Path, tmp_path: Path) -> None:
    """The texts of the rare class are those of the first, so nothing tells them apart; 99 % of answers are right."""
    generator = np.random.default_rng(0)
    lines = ["text,label"]
    for row in range(606):
        kind = "rare" if row >= 600 else "ab"[row % 2]
        words = [f"word{generator.integers(20) + 30 * (kind == 'b')}" for _ in range(8)]
        lines.append(f"{' '.join(words)},{kind}")
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = config_for(tmp_path, tmp_path / "train.csv", bert)
    # Without validation and test, which would take most of the rare rows.
    for split in ("validation", "test"):
        (tmp_path / f"{split}.csv").write_text("text,label\nword1,a\nword40,b\n", encoding="utf-8")
    known = gather_evidence(config.replaced(dataset_name=str(tmp_path)))
    tried = known.probe(" + ".join(shortlist_of(known, config).arms[0].settings.get("taps", [known.head])))
    assert tried is not None
    assert tried.score > 0.98
    assert tried.missed == (Missed("rare", 6, 6),)
    assert shortlist_of(known, config).enough == ""
    assert shortlist_of(replace(known, probes=tuple(replace(one, missed=()) for one in known.probes)), config).enough
    assert "rare (6 of 6)" in dict(sentences_on(known))["Missed"]
    assert Evidence.from_json(json.loads(json.dumps(known.as_json()))) == known


def test_rows_of_labels_that_say_nothing_show_no_gain_of_pretrained_weights(bert: Path, tmp_path: Path) -> None:
    known = gather_evidence(
        config_for(tmp_path, texts(tmp_path / "data", 120, shuffled=True), bert), with_fresh_weights=True
    )
    assert known.fresh_weights is not None
    gain = known.fresh_weights.gain
    assert abs(gain.mean) <= 2 * gain.standard_error
    assert known.probes[0].score < 0.6


def test_evidence_costs_one_pass_and_a_few_rows(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_for(tmp_path, texts(tmp_path / "data", 300), bert)
    passed = rows_passed(monkeypatch)
    known = gather_evidence(config)
    assert known.rows <= sum(passed) <= 1.15 * known.rows
    passed.clear()
    assert gather_evidence(config).probes == known.probes
    assert sum(passed) <= 0.16 * known.rows


@pytest.mark.parametrize("strategy", ["linear_probe", "deep_probe"])
def test_the_run_after_it_finds_the_features_of_its_training_rows(
    strategy: str, vision: Recipe, picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    data = picture_folder(cat=14, dog=14)
    config = VisionConfig.of(
        model_name_or_path=VIT, dataset_name=str(data), output_dir=str(tmp_path / "none"), augmentation="none",
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    known = gather_evidence(config)
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "frozen").rglob("*.safetensors")}
    assert stored
    done = vision(
        dataset_name=data, model_name_or_path=VIT, strategy=strategy, augmentation="none",
        cache_dir=tmp_path / "cache", max_train_samples_per_class=None,
    )  # fmt: skip
    assert done.code == 0, done.err
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "frozen").rglob("*.safetensors")}
    assert stored.items() <= after.items()
    # What is new is of validation.
    assert all(len(load_file(path)["targets"]) < known.rows for path in after.keys() - stored.keys())


@pytest.mark.slow
def test_pretrained_weights_help_where_they_know_the_task(tmp_path: Path) -> None:
    config = VisionConfig.of(
        model_name_or_path=VIT, dataset_name="sample:digits", max_train_samples_per_class=12,
        output_dir=str(tmp_path / "none"), cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    fresh = gather_evidence(config, with_fresh_weights=True).fresh_weights
    assert fresh is not None
    assert fresh.gain.is_clear
    assert fresh.pretrained_score > fresh.score + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("label", ["numbers", "labels"])
def test_labels_and_numbers(label: str, bert: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    lines = ["text,label"]
    for row in range(90):
        kind = row % 3
        words = " ".join(f"word{generator.integers(20 * kind, 20 * kind + 30) % 59}" for _ in range(6))
        value = f"{kind + generator.random():.3f}" if label == "numbers" else "ab;b;c"[: kind * 2 + 1]
        lines.append(f"{words},{value}")
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    problem = {"numbers": "regression", "labels": "multi_label_classification"}[label]
    config = config_for(tmp_path, tmp_path / "train.csv", bert, problem_type=problem)
    known = gather_evidence(config, with_fresh_weights=True)
    assert known.kind == {"numbers": "range of values", "labels": "label"}[label]
    if label == "numbers":
        assert known.kinds == 10
    assert known.curve is not None
    assert np.isfinite(known.curve.scores).all()
    assert known.fresh_weights is not None
    assert np.isfinite(known.fresh_weights.gain.mean)
    assert known.neighbours is not None


@pytest.mark.slow
def test_of_images_with_texts_heads_read_both_towers(tmp_path: Path) -> None:
    """The first reads both pooled vectors; a later run with these taps finds its features in the store."""
    config = MultimodalConfig.of(
        image_model_name_or_path=VIT, text_model_name_or_path="sample:minilm", dataset_name="sample:glyph-names",
        output_dir=str(tmp_path / "none"), cache_dir=str(tmp_path / "cache"), max_train_samples_per_class=4,
    )  # fmt: skip
    known = gather_evidence(config, with_fresh_weights=True)
    assert known.head == known.probes[0].features == "image_head + text_head"
    assert all({name.partition("_")[0] for name in one.taps} == {"image", "text"} for one in known.probes)
    assert known.probes[0].over_head is None
    assert all(one.over_head is not None for one in known.probes[1:])
    assert known.judged is not None
    assert known.neighbours is not None
    assert known.curve is not None
    assert known.fresh_weights is not None
    assert max(known.seconds["deep_probe"], known.seconds["linear_probe"]) < known.seconds["full"]
    assert known.blocks > 1
    assert Evidence.from_json(json.loads(json.dumps(known.as_json()))) == known
    assert "both towers" in dict(sentences_on(known))["Depth"]
    draw_evidence(tmp_path / "a.png", known)
    assert (tmp_path / "a.png").stat().st_size > 5_000


def test_of_a_head_of_several_layers_rows_and_times_are_known(
    picture_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """The outputs of a distilled DeiT are the mean of two layers."""
    model = save_checkpoint(tmp_path / "model", "deit", architectures=["DeiTForImageClassificationWithTeacher"])
    config = VisionConfig.of(
        model_name_or_path=str(model), dataset_name=str(picture_folder(cat=14, dog=14)),
        output_dir=str(tmp_path / "none"), cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    known = gather_evidence(config, with_fresh_weights=True)
    assert known.why_no_probes == f"the head of {model} has several layers"
    assert (known.probes, known.best, known.curve, known.fresh_weights) == ((), "", None, None)
    assert known.rows_per_kind > 5
    # It is trained for as many epochs.
    assert known.costs.solving == 0 < known.seconds["linear_probe"] < known.seconds["full"]
    assert not known.costs.repeats
    assert "deep_probe" in known.unsuitable
    assert Evidence.from_json(json.loads(json.dumps(known.as_json()))) == known


@EACH_TARGET
def test_halves_are_nested_and_in_proportion(target: Target) -> None:
    values = FeatureTask.of(target).values
    folds = some_folds()
    whole = folds.outside()
    half = halved(whole, values, target)
    quarter = halved(half, values, target)
    for all_of_it, more, less in zip(whole, half, quarter, strict=True):
        assert (more & ~all_of_it).sum() == (less & ~more).sum() == 0
        assert more.sum() == pytest.approx(all_of_it.sum() / 2, abs=6)
        assert less.sum() == pytest.approx(more.sum() / 2, abs=6)
        kinds = [set(target.strata(values)[rows].tolist()) for rows in (all_of_it, less)]
        assert kinds[0] == kinds[1] or target is not CLASSES
    assert all(np.array_equal(a, b) for a, b in zip(half, halved(whole, values, target), strict=True))


def test_the_learning_curve_is_that_of_scikit_learn(tmp_path: Path) -> None:
    task, folds = FeatureTask.of(CLASSES), some_folds(repeats=1)
    options = SolverOptions(Ranking.of(CLASSES, None))
    solve = partial(probed, options=options, intercept=True)
    features = task.stored(tmp_path)
    whole = solve(features, folds)
    curve = learning_curve(features, Task(split_of(task.values), CLASSES, folds, []), whole, solve, 3)
    assert curve is not None

    def right(masks: list[Mask], regularisation: float) -> float:
        answers = np.empty(len(task.values))
        for (_, inside), rows in zip(folds.each(), masks, strict=True):
            weight, bias, _ = reference(task.features[rows].astype(float), task.values[rows], regularisation)
            answers[inside] = (task.features[inside] @ weight.T + bias).argmax(1)
        return float((answers == task.values).mean())

    masks = folds.outside()
    half = halved(masks, task.values, CLASSES, 3)
    best = whole.regularisation
    assert curve.scores[2] == pytest.approx(right(masks, best), abs=0.02)
    # The best of the three that are tried.
    halves = [right(half, factor * best) for factor in (1, 10, 100)]
    assert min(abs(curve.scores[1] - score) for score in halves) < 0.02
    assert curve.last_doubling.mean == pytest.approx(curve.scores[2] - curve.scores[1])
    quarter = halved(half, task.values, CLASSES, 3)
    assert curve.rows == tuple(np.mean([rows.sum() for rows in some]) for some in (quarter, half, masks))


def test_a_row_of_each_class_is_too_few_for_a_curve(tmp_path: Path) -> None:
    """Each head would be solved on one row."""
    task, folds = FeatureTask.of(CLASSES), some_folds(repeats=1, count=2)
    solve = partial(probed, options=SolverOptions(Ranking.of(CLASSES, None)), intercept=True)
    features = task.stored(tmp_path)
    few = Folds(folds.of_rows[:, :3], np.arange(3))
    whole = solve(features, folds)
    assert learning_curve(features, Task(split_of(task.values[:3]), CLASSES, few, []), whole, solve, 0) is None


@pytest.mark.parametrize(
    ("setting", "lacking"),
    [
        ({"batch_norm_statistics": "updated"}, "a model without BatchNorm, with which --batch_norm_statistics"),
        ({"multi_label_loss": "asymmetric"}, "the problem type .*, with which --multi_label_loss has no effect"),
    ],
)  # fmt: skip
def test_what_no_strategy_could_read_is_refused_before_any_is_tried(
    setting: dict[str, str], lacking: str, bert: Path, tmp_path: Path
) -> None:
    """The head of a probe does not read it, so each strategy that trains would be refused in turn."""
    with pytest.raises(UserError, match=lacking):
        gather_evidence(config_for(tmp_path, texts(tmp_path / "data", 30), bert, **setting))


def test_of_one_row_of_each_class_rows_and_times_are_known(bert: Path, tmp_path: Path) -> None:
    config = config_for(tmp_path, texts(tmp_path / "data", 30), bert, max_train_samples_per_class=1)
    known = gather_evidence(config)
    assert (known.probes, known.rows_per_kind) == ((), 1.0)
    assert known.why_no_probes == "no training row can be left out"
    assert {"linear_probe", "full", "gradual"} <= known.seconds.keys()


def test_a_run_that_trains_nothing_is_refused() -> None:
    config: RunConfig = TextConfig.of(model_name_or_path="m", dataset_name="d", output_dir="o", evaluate_only=True)
    with pytest.raises(UserError, match="--evaluate_only"):
        gather_evidence(config)
