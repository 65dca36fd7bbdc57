"""The model card: what the Hub and people read about a run, also with hostile names."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as draws

from hf_transfer.evaluation.results import Baseline, Scores
from hf_transfer.evaluation.templates import TEMPLATES, as_text, fenced, render
from hf_transfer.hub.card import NOWHERE, model_card, read_emissions, write_card
from hf_transfer.modalities.image import ImageModality
from hf_transfer.settings.parsing import parse
from hf_transfer.settings.run import VisionConfig
from hf_transfer.settings.strategy import Strategy
from hf_transfer.targets.classes import Classes
from hf_transfer.targets.reporting import Metric
from hf_transfer.targets.table import TARGETS
from tests.evaluation.examples import COMMIT, DATA_COMMIT, class_tables, results_of

SETTINGS: dict[str, Any] = {
    "recipe": "vision",
    "model_name_or_path": "org/tiny",
    "model_revision": "main",
    "dataset_name": "org/pets",
    "dataset_revision": "main",
    "strategy": "full",
    "seed": 7,
    "metric_for_best_model": "accuracy",
    "output_dir": "/home/somebody/secret/runs",
    "cache_dir": "/home/somebody/cache",
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of a finished run."""
    (tmp_path / "out/model").mkdir(parents=True)
    (tmp_path / "out/model/config.json").write_text("{}")
    results_of().write(tmp_path / "out")
    (tmp_path / "out/config.yaml").write_text(yaml.safe_dump(SETTINGS))
    for name in ("curves.png", "confusion.png"):
        (tmp_path / "out" / name).write_bytes(name.encode())
    return tmp_path / "out"


def card(model: Path, *, adapter: bool = False, settings: Mapping[str, Any] = SETTINGS, **changes: Any) -> Any:
    """The card of results with changes, as the Hub's client reads it."""
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text("{}")
    if adapter:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (model / name).write_text("{}")
    # Names of the data and the model, say, are in both.
    chosen = {**settings, **{name: changes[name] for name in settings.keys() & changes.keys()}}
    return ModelCard(model_card(results_of(**changes), chosen, model, repository="alice/pets"))


def read(path: Path) -> Any:
    """The metadata of a card."""
    return ModelCard(path.read_text()).data


def test_the_metadata_name_task_base_model_data_and_metrics(tmp_path: Path) -> None:
    """But no license, which the owner chooses."""
    data = card(tmp_path).data.to_dict()
    (index,) = data.pop("model-index")
    assert data == {
        "base_model": "org/tiny",
        "base_model_relation": "finetune",
        "datasets": ["org/pets"],
        "library_name": "transformers",
        "metrics": ["accuracy", "f1"],
        "pipeline_tag": "image-classification",
        "tags": ["hf_transfer", "transfer-learning"],
    }
    assert index["name"] == "pets"
    (result,) = index["results"]
    assert result["dataset"] == {"name": "org/pets", "type": "org/pets", "split": "test", "revision": DATA_COMMIT}
    assert [(row["type"], row["value"], row["verified"]) for row in result["metrics"]] == [
        ("accuracy", 0.75, False), ("f1", 0.7333, False),
    ]  # fmt: skip


def test_the_library_of_an_adapter_is_peft(tmp_path: Path) -> None:
    data = card(tmp_path, adapter=True, strategy="lora").data
    assert (data.library_name, data.base_model_relation) == ("peft", "adapter")
    assert "lora" in data.tags


@pytest.mark.parametrize(("strategy", "base"), [("scratch", None), ("full", "org/tiny")])
def test_a_model_trained_from_scratch_has_no_base_model(tmp_path: Path, strategy: str, base: str | None) -> None:
    """Only the architecture is the same."""
    assert card(tmp_path, strategy=strategy).data.base_model == base


def test_local_models_and_data_are_not_in_the_metadata_and_only_the_end_of_their_paths_in_the_text(
    tmp_path: Path,
) -> None:
    """A path tells about its owner."""
    local: dict[str, Any] = {
        "model_name_or_path": "/home/somebody/secret/base",
        "dataset_name": "/home/somebody/secret/pets",
    }
    shown = card(tmp_path, commits={}, names={}, **local)
    assert (shown.data.base_model, shown.data.datasets) == (None, None)
    assert "somebody" not in shown.content
    assert "secret" not in shown.content
    assert "made from base on pets with" in shown.text


def test_the_languages_are_those_of_the_data_set(tmp_path: Path) -> None:
    assert card(tmp_path, recipe="text", languages=["en", "de"]).data.language == ["en", "de"]


SENTENCES = [
    "An image classifier with 2 classes, made from [org/tiny](https://huggingface.co/org/tiny) "
    f"at commit `{COMMIT}`",
    "Test accuracy **75.00%** (95 % interval 41.00% to 93.00%, 8 images).",
    'classify = pipeline("image-classification", "alice/pets")',
    "| train | 12 |",
    "- 12 train, 8 validation, 8 test images of 2 classes.",
    "`full`: all layers, from the pretrained weights.",
    "3,618 of 11,282 parameters were trained.",
    "| test | 8 | 0.7500 | 0.4100 to 0.9300 | 0.7333 | 0.3300 to 1.0000 | 0.6100 |",
    "Intervals: Wilson's for accuracy, bootstrap percentiles for macro F1.",
    "| cat | 0.5000 | 1.0000 | 0.6667 | 3 |",
    "| true | predicted | samples |",
    "| dog | cat | 2 |",
    "States that were evaluated on the validation split by accuracy: 3; kept: number 2.",
    "|  | validation accuracy | validation macro F1 | loss |",
    "| 2 | 0.7500 | 0.7333 | 0.6100 |",
    "Nearest neighbours: validation accuracy 0.7.",
    "It names one of its classes for every sample",
    "The smallest class is cat with 3.",
    "No license is set",
    f"model_revision: {COMMIT}",
    "Seed 7, processes: 1, threads of each: 2, 12 s, 3 of them in training. Versions: python 3.11.7, torch 2.13.0.",
]  # fmt: skip


@pytest.mark.parametrize("sentence", SENTENCES)
def test_the_card_contains(tmp_path: Path, sentence: str) -> None:
    assert sentence in card(tmp_path).text


def test_every_strategy_is_explained(tmp_path: Path) -> None:
    explained: Any = TEMPLATES.get_template("hub/strategies.md.jinja").module
    assert set(get_args(Strategy)) == explained.strategies.keys()
    for strategy, words in explained.strategies.items():
        assert f"`{strategy}`: {words}." in card(tmp_path, strategy=strategy).text


def test_copies_of_training_and_unreadable_samples_are_among_the_limits(tmp_path: Path) -> None:
    masked = {"train": 2, "validation": 0, "test": 0}
    text = card(tmp_path, copies_of_training={"validation": 0, "test": 3}, masked=masked).text
    assert "Exact copies of training images: 3 in test." in text
    assert "Unreadable images that were left out: 2 in train." in text
    assert "| train | 12 of 14 |" in text
    assert "Exact copies" not in card(tmp_path).text


def test_whose_weights_a_sample_from_elsewhere_has_is_among_the_limits(tmp_path: Path) -> None:
    """Also of a tower of a pair; the small samples were trained by this project."""
    local: dict[str, Any] = {"commits": {}, "names": {}}
    text = card(tmp_path, model_name_or_path="sample:efficientnet-lite0", **local).text
    assert (
        "- The base model sample:efficientnet-lite0 is EfficientNet-Lite0, trained by Google on ImageNet-1k; " in text
    )
    assert "license Apache-2.0" in text
    pair = card(tmp_path, model_name_or_path="sample:vit-glyphs + sample:minilm", **local).text
    assert "- The base model sample:minilm is sentence-transformers/all-MiniLM-L6-v2; license Apache-2.0" in pair
    assert "The base model sample:vit-glyphs" not in pair
    assert "The base model org/tiny is" not in card(tmp_path).text


class Counts(Classes):
    """A target that no other file knows: numbers without percent, tables and limits."""

    problem_type = "count"
    metrics = (Metric("mae", "MAE", lower_is_better=True),)
    main_metric = "mae"
    limits = ()


def test_the_card_of_another_target_has_its_metrics_and_no_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TARGETS, "count", Counts)
    scores = Scores({"mae": 1.5, "loss": 0.25}, {"mae": (1.25, 1.75)}, 8)
    shown = card(
        tmp_path, problem_type="count", predicts="counts", labels=["count"], tables=[], scores={"test": scores},
        notes=[], frozen_store=[], history=[{"epoch": 0.0, "train_loss": 1.0, "mae": 1.5, "loss": 0.25}],
        settings={name: value for name, value in SETTINGS.items() if name != "metric_for_best_model"},
    )  # fmt: skip
    assert "An image model for counts, made from" in shown.text
    assert "Test MAE **1.5000** (95 % interval 1.2500 to 1.7500, 8 images)." in shown.text
    assert "| test | 8 | 1.5000 | 1.2500 to 1.7500 | 0.2500 |" in shown.text
    assert "by mae: 1; kept: number 2." in shown.text
    assert not re.search("accuracy|class|F1|Wilson", shown.text.split("## How to repeat")[0].split("## Data")[1])
    assert {"metrics", "model-index"}.isdisjoint(shown.data.to_dict())


LABELS = {"map": 0.7, "f1_micro": 0.6, "f1_macro": 0.5, "f1_samples": 0.55, "subset_accuracy": 0.4}
NUMBERS = {"rmse": 1.5, "mae": 1.25, "r2": 0.75, "pearson": 0.9, "spearman": 0.875}


@pytest.mark.parametrize(
    ("problem_type", "metrics", "predicts", "tag", "first"),
    [
        ("multi_label_classification", LABELS, "2 labels", "multi-label", ("average_precision", {"average": "macro"})),
        ("regression", NUMBERS, "a number (height)", "regression", ("mse", {"squared": False})),
    ],
)
def test_the_card_of_labels_and_numbers_has_their_metrics_tags_and_a_baseline(
    tmp_path: Path, problem_type: str, metrics: dict[str, float], predicts: str, tag: str, first: tuple[str, Any]
) -> None:
    every = {**metrics, "loss": 0.3}
    intervals = {name: (value - 0.1, value + 0.1) for name, value in metrics.items()}
    low = dict.fromkeys(every, 0.125)
    shown = card(
        tmp_path, problem_type=problem_type, predicts=predicts, tables=[], notes=[], frozen_store=[],
        scores={"test": Scores(every, intervals, 8)}, baseline=Baseline("always the mean", low),
        history=[{"epoch": 0.0, "train_loss": 1.0, **every}],
        settings={name: value for name, value in SETTINGS.items() if name != "metric_for_best_model"},
    )  # fmt: skip
    assert tag in shown.data.tags
    assert predicts in shown.text
    assert "| test: always the mean | 8 | 0.1250 |" in shown.text
    assert len(set(shown.data.metrics)) == len(shown.data.metrics)
    results = shown.data.eval_results
    assert [one.metric_value for one in results] == list(metrics.values())
    assert (results[0].metric_type, results[0].metric_args) == first
    no_thresholds = "A plain pipeline applies no thresholds"
    assert (no_thresholds in shown.text) == (problem_type == "multi_label_classification")


def test_the_settings_in_the_card_are_those_of_a_recipe(tmp_path: Path) -> None:
    """They can be copied and run."""
    (block,) = re.findall(r"```yaml\n(.*?)```", card(tmp_path).text, re.DOTALL)
    (tmp_path / "settings.yaml").write_text(block)
    config = parse(VisionConfig, ["--config", str(tmp_path / "settings.yaml"), "--output_dir=new"])
    assert (config.model.model_revision, config.data.dataset_revision, config.training.seed) == (COMMIT, DATA_COMMIT, 7)


HOSTILE = [
    "<script>alert(1)</script>", "</details><h1>", "a|b", "x\n---\nlicense: mit\n---\n", "```\n# code", "![](http://a.b/c)",
    "[a](javascript:alert(1))", "https://evil.example", "www.evil.example", "@everybody", "&lt;b&gt;", "$x$", "~~a~~",
    "\u202egnp.exe", "a\0b\x1b[31m", "{{ jinja }}", "%s", "- item", "# head", "> quote", "1. one", "---", "",
]  # fmt: skip
ANY_NAME = draws.one_of(draws.sampled_from(HOSTILE), draws.text(max_size=40))


def named(first: str, second: str) -> dict[str, Any]:
    """Results with such names of labels and data."""
    return {
        "labels": [first, second],
        "tables": class_tables(first, second),
        "notes": [f"Columns of text that are not used: {first}, {second}."],
        "dataset_name": f"/data/{first}",
        "commits": {"model_name_or_path": COMMIT},
    }


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(first=ANY_NAME, second=ANY_NAME)
def test_any_names_of_labels_and_data_are_escaped(tmp_path: Path, first: str, second: str) -> None:
    """The card has the same headings, tables and metadata as with plain names, and no link or markup from them."""
    plain, hostile = card(tmp_path, **named("cat", "dog")), card(tmp_path, **named(first, second))
    assert hostile.data.to_dict().keys() == plain.data.to_dict().keys()
    assert hostile.data.license is None
    assert shape(hostile.text) == shape(plain.text)
    for pattern in (r"<", r"\]\(", r"(?<!\()https?://(?!huggingface\.co)", r"\bwww\.", r"@\w"):
        assert re.findall(pattern, prose(hostile.text)) == re.findall(pattern, prose(plain.text)), pattern


def prose(text: str) -> str:
    """The text without blocks of code, in which nothing is markup."""
    return re.sub(r"^(`{3,})\w*\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)


def shape(text: str) -> list[str]:
    """The kind of each line: heading, table row with its number of columns, list, text."""
    shapes = []
    for line in prose(text).split("\n"):
        kinds = {"#": "heading", "|": f"row {line.count('|')}", "-": "list", "!": "picture", "": "empty"}
        shapes.append(kinds.get(line[:1], "text"))
    return shapes


@given(text=draws.text(alphabet=draws.sampled_from("`~ab\n "), max_size=60))
def test_no_text_ends_its_block_of_code(text: str) -> None:
    opening, *inside, closing = fenced(text, "yaml").split("\n")
    assert opening == f"{closing}yaml"
    assert not any(line.strip().startswith(closing) for line in inside)


def test_a_plain_name_is_not_changed() -> None:
    assert as_text("grün 😀 3.5-turbo (new)") == "grün 😀 3.5-turbo (new)"


def test_the_card_is_beside_the_model_with_its_pictures(out: Path) -> None:
    text = write_card(out).read_text()
    assert {path.name for path in (out / "model").iterdir()} == {
        "README.md", "config.json", "curves.png", "confusion.png",
    }  # fmt: skip
    assert set(re.findall(r"!\[.*?\]\((.*?)\)", text)) == {"curves.png", "confusion.png"}
    assert f'pipeline("image-classification", "{NOWHERE}")' in text


def test_a_card_that_was_not_edited_is_rewritten_for_another_name(out: Path) -> None:
    write_card(out, "alice/first")
    text = write_card(out, "alice/second").read_text()
    assert '"alice/second")' in text
    assert "alice/first" not in text


def test_an_edited_card_stays_except_for_a_missing_name(out: Path) -> None:
    """The owner may have added the license."""
    path = write_card(out)
    edited = path.read_text().replace("---\n", "---\nlicense: mit\n", 1) + "\nMine.\n"
    path.write_text(edited)
    assert write_card(out, "alice/pets").read_text() == edited.replace(NOWHERE, "alice/pets")
    assert read(path).to_dict()["license"] == "mit"


def test_a_model_with_its_own_code_warns_that_it_must_be_trusted(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"auto_map": {}}')
    text = model_card(results_of(recipe="text"), SETTINGS, model, repository="alice/pets")
    assert 'pipeline("text-classification", "alice/pets", trust_remote_code=True)' in text
    assert "read it before you trust it" in text


def test_a_modality_without_a_pipeline_is_used_with_this_package() -> None:
    class Grey(ImageModality):
        has_pipeline = False

    program = render(
        "hub/usage.py.jinja",
        modality=Grey(),
        repository="alice/grey",
        pairs=False,
        is_adapter=False,
        code_files=[],
        results=results_of(),
    )
    assert 'predict = hf_transfer.load("alice/grey")' in program
    assert "transformers" not in program


def test_a_model_of_pairs_is_used_with_a_pair(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    settings = SETTINGS | {"text_pair_column_name": "b"}
    text = model_card(results_of(recipe="text"), settings, tmp_path, repository="alice/pets")
    assert 'classify({"text": "a text", "text_pair": "another"}, truncation=True)' in text


def test_emissions_are_in_the_card_if_codecarbon_has_measured_them(out: Path) -> None:
    """In grams, of all processes."""
    assert read_emissions(out) is None
    assert "Carbon" not in write_card(out).read_text()
    (out / "emissions.csv").write_text("emissions,country_name,gpu_model\n0.001,Germany,\n0.0025,Germany,H100\n")
    assert read(write_card(out)).to_dict()["co2_eq_emissions"] == {
        "emissions": pytest.approx(3.5), "source": "CodeCarbon", "training_type": "fine-tuning",
        "geographical_location": "Germany", "hardware_used": "H100",
    }  # fmt: skip
