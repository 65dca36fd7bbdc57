"""Runs on several labels and on numbers: every recipe and strategy, with files that others read in the same way."""

import ast
import hashlib
import io
import json
import re
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, r2_score, root_mean_squared_error
from transformers import pipeline

import hf_transfer as ht
from hf_transfer.modalities.table import modality_named
from hf_transfer.run import Run
from hf_transfer.settings.strategy import ADAPTERS, PROBES
from hf_transfer.targets.target import Target
from hf_transfer.whole_run import run_all_steps
from tests.tiny_models import save_checkpoint
from tests.tiny_text_models import save_text_checkpoint
from tests.training.launched import two_forks

STRATEGIES = (
    "linear_probe", "deep_probe", "partial", "gradual", "lp_ft", "full", "scratch", "bitfit", "lora", "dora", "ia3",
    "lokr", "adapter",
)  # fmt: skip
TASKS: dict[str, Any] = {"image": "image-classification", "text": "text-classification"}
COLUMN = {"labels": "tags", "numbers": "size"}
SIZES = {"train": 48, "validation": 16, "test": 24}
RECIPES = ("vision", "text", "multimodal")
Start = Callable[..., Run]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with texts, tags and a size that both tell: a bright half, or a word, stands for a tag."""
    folder, generator = tmp_path_factory.mktemp("samples"), np.random.default_rng(0)
    for split, count in SIZES.items():
        (folder / split).mkdir()
        rows = []
        for number in range(count):
            flags = generator.random(3) < [0.6, 0.4, 0.2]
            pixels = generator.integers(0, 90, (16, 16, 3))
            for place, has_tag in enumerate(flags):
                pixels[..., place] += 150 * has_tag
            Image.fromarray(pixels.astype(np.uint8)).save(folder / split / f"{number}.png")
            words = [f"word{5 + place}" for place in np.flatnonzero(flags)]
            rows.append(
                {
                    "file_name": f"{number}.png",
                    "text": " ".join([*words, f"word{generator.integers(20, 50)}"]),
                    "tags": [f"tag{place}" for place in np.flatnonzero(flags)],
                    "size": float(100 + 25 * flags @ [1, 2, 4] + generator.normal()),
                }
            )
        (folder / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The settings that name a tiny model, for each recipe."""
    folder = tmp_path_factory.mktemp("models")
    vision, text = save_checkpoint(folder / "vit"), save_text_checkpoint(folder / "bert")
    towers = {"image_model_name_or_path": str(vision), "text_model_name_or_path": str(text)}
    return {
        "vision": {"model_name_or_path": str(vision)}, "text": {"model_name_or_path": str(text)}, "multimodal": towers,
    }  # fmt: skip


@pytest.fixture
def start(samples: Path, models: dict[str, dict[str, Any]], tmp_path: Path) -> Start:
    """Runs a recipe's steps on labels or numbers: `start("vision", "labels", "full", ...)`."""

    def run(recipe: str, target: str, strategy: str, out: str = "out", **more: Any) -> Run:
        data = samples if recipe != "text" else _texts(samples, tmp_path)
        stepwise = strategy not in (("deep_probe",) if recipe == "multimodal" else PROBES)
        settings = {"num_train_epochs": 3, "learning_rate": 1e-3} if stepwise else {}
        settings |= {"merge_adapter": True} if strategy in ADAPTERS and recipe != "multimodal" else {}
        config = modality_named(recipe).config.of(
            **models[recipe], dataset_name=str(data), label_column_name=COLUMN[target], output_dir=str(tmp_path / out),
            cache_dir=str(tmp_path / "cache"), strategy=strategy,
            **(settings | more),
        )  # fmt: skip
        return run_all_steps(config)

    return run


def _texts(samples: Path, folder: Path) -> Path:
    """A folder of tables without pictures."""
    texts = folder / "texts"
    texts.mkdir(exist_ok=True)
    for split in SIZES:
        (texts / f"{split}.jsonl").write_bytes((samples / f"{split}.jsonl").read_bytes())
    return texts


def digest(out: Path) -> str:
    return hashlib.sha256((out / "model/model.safetensors").read_bytes()).hexdigest()


def assert_independent(run: Run) -> Target:
    """The metrics of the test split are those that scikit-learn computes from the outputs; the baseline is beaten."""
    assert run.results is not None
    test, metrics = run.predictions["test"], run.metrics["test"]
    metrics = metrics.get("both", metrics)
    outputs, truth = test.outputs.double(), test.targets
    if test.target.problem_type == "regression":
        assert metrics["rmse"] == pytest.approx(root_mean_squared_error(truth, outputs.numpy()))
        assert metrics["r2"] == pytest.approx(r2_score(truth, outputs.numpy()))
    else:
        config = json.loads(Path(run.config.output.output_dir, "model/config.json").read_text())
        chosen = outputs.sigmoid().numpy() >= np.asarray(config["thresholds"])
        assert metrics["map"] == pytest.approx(average_precision_score(truth, outputs.numpy()))
        assert metrics["f1_micro"] == pytest.approx(f1_score(truth, chosen, average="micro"))
    assert run.results.baseline is not None
    return test.target


@pytest.mark.slow
@pytest.mark.parametrize("target", COLUMN)
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("strategy", ["linear_probe", "deep_probe", "lp_ft", "full", "lora"])
def test_every_recipe_learns_labels_and_numbers(recipe: str, target: str, strategy: str, start: Start) -> None:
    run = start(recipe, target, strategy)
    finished = assert_independent(run)
    problem_type = {"labels": "multi_label_classification", "numbers": "regression"}[target]
    out = Path(run.config.output.output_dir)
    config = json.loads((out / "model/config.json").read_text())
    assert config["problem_type"] == finished.problem_type == problem_type
    report = (out / "report.md").read_text(encoding="utf-8")
    assert f"Problem type: {problem_type}, inferred from column" in report.replace("&#95;", "_")
    assert ("residuals.png" in report) == (out / "residuals.png").is_file() == (target == "numbers")
    # Predictions for the same samples, from the files alone.
    again = ht.load(out)
    assert again.target == finished


@pytest.mark.slow
@pytest.mark.parametrize("target", COLUMN)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_learns_labels_and_numbers(strategy: str, target: str, start: Start) -> None:
    assert_independent(start("text", target, strategy))


@pytest.mark.parametrize("target", COLUMN)
@pytest.mark.parametrize("recipe", ["vision", "text"])
def test_a_pipeline_gives_our_probabilities_and_numbers(
    recipe: str, target: str, start: Start, samples: Path, tmp_path: Path
) -> None:
    run = start(recipe, target, "full")
    given = (
        [str(samples / f"test/{number}.png") for number in range(6)]
        if recipe == "vision"
        else [json.loads(line)["text"] for line in (samples / "test.jsonl").read_text().splitlines()[:6]]
    )
    classify = pipeline(TASKS[run.modality.name], str(tmp_path / "out/model"))
    ours = ht.load(tmp_path / "out")(given, top=3)
    for answers, scores in zip(classify(given, top_k=None), ours, strict=True):
        assert {one["label"]: one["score"] for one in answers} == pytest.approx(scores, rel=1e-6, abs=1e-6)
    if target == "numbers":
        assert all(50 < scores["size"] < 350 for scores in ours)


@pytest.mark.slow
@pytest.mark.parametrize("target", COLUMN)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_with_a_store_ends_with_the_same_bytes_as_without(recipe: str, target: str, start: Start) -> None:
    runs = {
        cached: start(
            recipe, target, "partial", out=cached, cache_frozen=cached, save_steps=0, per_device_train_batch_size=16
        )
        for cached in ("on", "off")
    }
    first, second = (Path(run.config.output.output_dir) for run in runs.values())
    assert digest(first) == digest(second)
    assert runs["on"].metrics == runs["off"].metrics


@pytest.mark.parametrize("target", COLUMN)
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_finished_model_is_evaluated_again_with_the_same_figures(
    recipe: str, target: str, start: Start, samples: Path, tmp_path: Path
) -> None:
    """Column, problem type and thresholds are those that were saved with it."""
    first = start(recipe, target, "full")
    again = modality_named(recipe).config.of(
        model_name_or_path=str(tmp_path / "out/model"), evaluate_only=True, output_dir=str(tmp_path / "again"),
        dataset_name=str(tmp_path / "texts" if recipe == "text" else samples), cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    assert run_all_steps(again).metrics["test"] == first.metrics["test"]


@pytest.mark.parametrize("target", COLUMN)
def test_an_adapter_answers_as_it_was_trained(target: str, start: Start, tmp_path: Path) -> None:
    run = start("text", target, "lora", merge_adapter=False)
    assert (tmp_path / "out/model/adapter_config.json").is_file()
    assert_independent(run)
    assert ht.load(tmp_path / "out").target == run.splits.target


@pytest.mark.parametrize("target", COLUMN)
@pytest.mark.parametrize("strategy", ["full", "lora"])
def test_the_program_on_the_card_answers_as_we_do(strategy: str, target: str, start: Start, tmp_path: Path) -> None:
    start("text", target, strategy, **({"merge_adapter": False} if strategy == "lora" else {}))
    model, text = tmp_path / "out/model", "word5 word6 word30"
    (block,) = re.findall(r"```python\n(.*?)```", (model / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    program = block.replace("OWNER/NAME", str(model)).replace('"a text"', repr(text))
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(program, {})  # noqa: S102 (our own program)
    answer, ours = ast.literal_eval(printed.getvalue().splitlines()[-1]), ht.load(model)
    if target == "labels":
        assert {*answer} == {*ours.decide([text])[0]["labels"]}
    elif strategy == "lora":
        assert answer == pytest.approx(ours([text])[0], rel=1e-5)
    else:
        assert answer[0]["score"] == pytest.approx(ours([text])[0]["size"], rel=1e-5)


@pytest.mark.parametrize("mixing", [{"mixup_alpha": 0.4}, {"mixup_alpha": 0.4, "cutmix_alpha": 1.0}])
def test_samples_with_labels_can_be_mixed(mixing: dict[str, float], start: Start) -> None:
    assert_independent(start("vision", "labels", "full", **mixing))


def test_numbers_can_be_mixed_like_pixels(start: Start) -> None:
    assert_independent(start("vision", "numbers", "full", mixup_alpha=0.4))


@pytest.mark.parametrize(
    ("target", "setting", "value"),
    [
        ("labels", "rdrop_alpha", 1.0),
        ("labels", "regression_loss", "huber"),
        ("numbers", "rdrop_alpha", 1.0),
        ("numbers", "label_smoothing_factor", 0.1),
        ("numbers", "class_weights", "balanced"),
        ("numbers", "multi_label_loss", "asymmetric"),
        ("numbers", "label_separator", "|"),
        ("numbers", "max_train_samples_per_class", 3),
    ],
)
def test_a_setting_without_effect_is_refused_by_name(target: str, setting: str, value: Any, start: Start) -> None:
    with pytest.raises(ht.UserError, match=f"no --{setting}"):
        start("text", target, "full", **{setting: value})


def test_cutmix_of_numbers_is_refused(start: Start) -> None:
    with pytest.raises(ht.UserError, match="no --cutmix_alpha"):
        start("vision", "numbers", "full", cutmix_alpha=1.0)


@pytest.mark.parametrize("target", COLUMN)
@pytest.mark.parametrize("probe", ["svm", "knn"])
def test_a_probe_for_classes_is_refused(probe: str, target: str, start: Start) -> None:
    with pytest.raises(ht.UserError, match=f"for --probe {probe} one class for each sample"):
        start("text", target, "linear_probe", probe=probe)


@pytest.mark.parametrize(("target", "best"), [("labels", "map"), ("numbers", "rmse")])
def test_accuracy_ranks_no_epochs_of_labels_and_numbers(target: str, best: str, start: Start) -> None:
    with pytest.raises(ht.UserError, match=f"for --metric_for_best_model one of {best}, "):
        start("text", target, "full", metric_for_best_model="accuracy")
    run = start("text", target, "full", metric_for_best_model="loss")
    assert run.results is not None
    losses = [row["loss"] for row in run.results.history]
    assert run.results.best_epoch == 1 + int(np.argmin(losses))


def test_a_model_without_a_bias_predicts_numbers(start: Start, tmp_path: Path, models: dict[str, Any]) -> None:
    """GPT-2's last layer has none: its numbers are scaled, and not centred."""
    gpt2 = save_text_checkpoint(tmp_path / "gpt2", "gpt2")
    before = models["text"].copy()
    models["text"]["model_name_or_path"] = str(gpt2)
    try:
        for strategy in ("linear_probe", "full"):
            run = start("text", "numbers", strategy, out=strategy)
            assert_independent(run)
            # With weights of 0 the error would be the numbers themselves, about 170.
            assert run.metrics["test"]["rmse"] < (60 if strategy == "linear_probe" else 120)
    finally:
        models["text"].update(before)


def test_a_solved_head_is_calibrated_on_held_out_samples_of_training_too(start: Start) -> None:
    run = start("text", "labels", "linear_probe")
    assert run.fitted.held_out is not None
    assert any(f"on {SIZES['train'] + SIZES['validation']} samples that were held out" in note for note in run.notes)
    other = start("text", "labels", "full", out="full")
    assert other.fitted.held_out is None
    assert any(f"on {SIZES['validation']} samples that were held out" in note for note in other.notes)


def test_labels_in_columns_with_unknown_cells_run_to_the_end(
    tmp_path: Path, models: dict[str, Any], samples: Path
) -> None:
    """Of each third sample one label is not known: its cells count nowhere, and the report says how many."""
    folder = tmp_path / "flags"
    folder.mkdir()
    for split in SIZES:
        rows = [json.loads(line) for line in (samples / f"{split}.jsonl").read_text().splitlines()]
        flags = [
            {"text": row["text"], **{tag: (None if number % 3 == place else int(tag in row["tags"]))
                                     for place, tag in enumerate(("tag0", "tag1", "tag2"))}}
            for number, row in enumerate(rows)
        ]  # fmt: skip
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in flags))
    config = modality_named("text").config.of(
        **models["text"], dataset_name=str(folder), label_column_names=["tag0", "tag1", "tag2"], strategy="lp_ft",
        output_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"), num_train_epochs=2,
    )  # fmt: skip
    run = run_all_steps(config)
    assert "Labels not known, which count nowhere: 48 in train, 16 in validation, 24 in test." in run.notes
    test = run.predictions["test"]
    assert np.isnan(test.targets).sum() == 24
    expected = np.mean([
        average_precision_score(truth[known], outputs[known])
        for truth, outputs in zip(test.targets.T, test.outputs.numpy().T, strict=True)
        for known in [~np.isnan(truth)]
    ])  # fmt: skip
    assert run.metrics["test"]["map"] == pytest.approx(expected)


@pytest.mark.slow
@pytest.mark.parametrize("target", COLUMN)
@pytest.mark.parametrize("strategy", ["linear_probe", "full"])
def test_two_processes_end_with_the_metrics_of_one(
    strategy: str, target: str, start: Start, models: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """Of a solved head, whose features do not depend on the batches; others end with all samples counted once."""
    alone = start("text", target, strategy, out="alone")
    flags = models["text"] | {
        "dataset_name": tmp_path / "texts", "label_column_name": COLUMN[target], "strategy": strategy,
        "output_dir": tmp_path / "two", "cache_dir": tmp_path / "cache of two",
    }  # fmt: skip
    flags |= {} if strategy == "linear_probe" else {"num_train_epochs": 2, "per_device_train_batch_size": 8}
    ended = two_forks("recipes/text.py", *(f"--{name}={value}" for name, value in flags.items()))
    assert ended.returncode == 0, ended.output[-3000:]
    results = ht.Results.read(tmp_path / "two")
    assert (results.processes, results.samples) == (2, SIZES)
    if strategy == "linear_probe":
        assert results.metrics["test"] == pytest.approx(alone.metrics["test"], rel=1e-4)


def test_further_metrics_are_computed_by_evaluate(start: Start, tmp_path: Path) -> None:
    script = tmp_path / "shares.py"
    script.write_text(METRIC)
    run = start("text", "numbers", "full", metrics=[str(script)])
    test = run.predictions["test"]
    assert run.results is not None
    (table,) = [one for one in run.results.tables if one.key == "further_metrics"]
    expected = float((test.outputs[:, 0].double().numpy() > test.targets[:, 0]).mean())
    assert table.rows == [{"metric": "share_above", "value": expected}]
    assert "share_above" in (tmp_path / "out/report.md").read_text().replace("&#95;", "_")
    with pytest.raises(ht.UserError, match="for --metrics names of metrics that evaluate can load"):
        start("text", "numbers", "full", out="other", metrics=[str(tmp_path / "missing.py")])
    assert not (tmp_path / "other").exists()


METRIC = """
import datasets
import evaluate


class Shares(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("float"), "references": datasets.Value("float")})
        return evaluate.MetricInfo(description="", citation="", features=features)

    def _compute(self, predictions, references):
        return {"share_above": sum(p > r for p, r in zip(predictions, references)) / len(references), "list": [1, 2]}
"""


def test_the_same_run_again_ends_with_the_same_bytes(start: Start) -> None:
    """All draws are made from the seed."""
    first, second = (start("text", "labels", "full", out=out) for out in ("first", "second"))
    assert digest(Path(first.config.output.output_dir)) == digest(Path(second.config.output.output_dir))
    assert torch.equal(first.predictions["test"].outputs, second.predictions["test"].outputs)
