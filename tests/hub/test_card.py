"""The model card: what the Hub and people read of a run, with names that try to break it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as draws

from hf_transfer.config import VisionConfig
from hf_transfer.hub.card import model_card, read_emissions, write_card
from hf_transfer.hub.card_text import STRATEGIES, as_text, fenced
from hf_transfer.hub.usage import NOWHERE
from hf_transfer.parsing import parse

COMMIT, DATA_COMMIT = "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"
METRICS = {"accuracy": 0.75, "f1_macro": 0.7333, "loss": 0.61}
INTERVALS = {"accuracy": [0.41, 0.93], "f1_macro": [0.33, 1.0]}
RESULTS: dict[str, Any] = {
    "recipe": "vision",
    "strategy": "full",
    "model_name_or_path": "org/tiny",
    "dataset_name": "org/pets",
    "commits": {"model_name_or_path": COMMIT, "dataset_name": DATA_COMMIT},
    "languages": [],
    "seed": 7,
    "labels": ["cat", "dog"],
    "parameters": {"total": 11_282, "trainable": 3_618},
    "metrics": {"validation": METRICS, "test": METRICS},
    "intervals": {"validation": INTERVALS, "test": INTERVALS},
    "classes": [
        {"label": "cat", "precision": 0.5, "recall": 1.0, "f1": 0.6667, "samples": 3},
        {"label": "dog", "precision": 1.0, "recall": 0.6, "f1": 0.75, "samples": 5},
    ],
    "confusions": [{"true": "dog", "predicted": "cat", "samples": 2}],
    "best_epoch": 2,
    "soup": [2],
    "history": [{"epoch": float(number), "train_loss": 0.5, **METRICS} for number in range(3)],
    "notes": ["12 train, 8 validation, 8 test images of 2 classes."],
    "frozen_store": ["Frozen store: not used; too small.", "Nearest neighbours: validation accuracy 0.7."],
    "samples": {"train": 12, "validation": 8, "test": 8},
    "masked": {"train": 0, "validation": 0, "test": 0},
    "duplicates_of_training": {"validation": 0, "test": 0},
    "seconds": {"total": 12.0, "train": 3.0, "frozen": 0.0},
    "threads": 2,
    "processes": 1,
    "versions": {"python": "3.11.7", "torch": "2.13.0"},
}
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
    """What a finished run has left."""
    (tmp_path / "out/model").mkdir(parents=True)
    (tmp_path / "out/model/config.json").write_text("{}")
    (tmp_path / "out/results.json").write_text(json.dumps(RESULTS))
    (tmp_path / "out/config.yaml").write_text(yaml.safe_dump(SETTINGS))
    for name in ("curves.png", "confusion.png"):
        (tmp_path / "out" / name).write_bytes(name.encode())
    return tmp_path / "out"


def card(model: Path, *, adapter: bool = False, **changes: Any) -> Any:
    """As the Hub's own client reads it."""
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text("{}")
    if adapter:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (model / name).write_text("{}")
    chosen = SETTINGS | {name: changes[name] for name in SETTINGS.keys() & changes.keys()}
    return ModelCard(model_card(RESULTS | changes, chosen, model, repository="alice/pets"))


def read(path: Path) -> Any:
    """The metadata of a card."""
    return ModelCard(path.read_text()).data


def test_the_hub_reads_what_the_model_is_and_came_from(tmp_path: Path) -> None:
    """Without a license, which is its owner's to choose."""
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


def test_an_adapter_is_one_of_peft(tmp_path: Path) -> None:
    data = card(tmp_path, adapter=True, strategy="lora").data
    assert (data.library_name, data.base_model_relation) == ("peft", "adapter")
    assert "lora" in data.tags


@pytest.mark.parametrize(("strategy", "base"), [("scratch", None), ("full", "org/tiny")])
def test_from_scratch_there_is_no_base(tmp_path: Path, strategy: str, base: str | None) -> None:
    """Only an architecture was taken over."""
    assert card(tmp_path, strategy=strategy).data.base_model == base


def test_what_is_only_here_is_not_named_to_the_hub_and_its_path_to_nobody(tmp_path: Path) -> None:
    """A path tells of whose machine it was."""
    here: dict[str, Any] = {
        "model_name_or_path": "/home/somebody/secret/base",
        "dataset_name": "/home/somebody/secret/pets",
    }
    found = card(tmp_path, commits={}, **here)
    assert (found.data.base_model, found.data.datasets) == (None, None)
    assert "somebody" not in found.content
    assert "secret" not in found.content
    assert "made from base on pets with" in found.text


def test_the_language_is_what_the_data_set_says(tmp_path: Path) -> None:
    assert card(tmp_path, recipe="text", languages=["en", "de"]).data.language == ["en", "de"]


SAID = [
    "An image classifier with 2 classes, made from [org/tiny](https://huggingface.co/org/tiny) "
    f"at commit `{COMMIT}`",
    "Test accuracy **75.00%** (95 % interval 41.00% to 93.00%, 8 images).",
    'classify = pipeline("image-classification", "alice/pets")',
    "| train | 12 |",
    "- 12 train, 8 validation, 8 test images of 2 classes.",
    "`full`: all of it, from the pretrained weights: the most freedom to suit the task.",
    "3,618 of 11,282 parameters learned.",
    "| test | 8 | 0.7500 | 0.4100 to 0.9300 | 0.7333 | 0.3300 to 1.0000 | 0.6100 |",
    "| cat | 0.5000 | 1.0000 | 0.6667 | 3 |",
    "- dog for cat: 2",
    "3 states were judged on the validation split by accuracy; kept: number 2.",
    "Nearest neighbours: validation accuracy 0.7.",
    "The class with the fewest of them is cat with 3.",
    "No license is set",
    f"model_revision: {COMMIT}",
    "Seed 7, processes: 1, threads of each: 2, 12 s, 3 of them in training. Versions: python 3.11.7, torch 2.13.0.",
]  # fmt: skip


@pytest.mark.parametrize("sentence", SAID)
def test_the_card_says(tmp_path: Path, sentence: str) -> None:
    assert sentence in card(tmp_path).text


def test_every_strategy_is_explained(tmp_path: Path) -> None:
    field = VisionConfig.__dataclass_fields__["strategy"]
    assert set(field.type.__args__) == STRATEGIES.keys()  # type: ignore[union-attr]
    for strategy in STRATEGIES:
        assert f"`{strategy}`: {STRATEGIES[strategy]}." in card(tmp_path, strategy=strategy).text


def test_what_casts_doubt_on_the_figures_is_among_the_limits(tmp_path: Path) -> None:
    text = card(tmp_path, duplicates_of_training={"validation": 0, "test": 3}, masked={"train": 2, "test": 0}).text
    assert "Exact copies of training samples were found: 3 in test." in text
    assert "Could not be read, and left out: 2 in train." in text
    assert "Exact copies" not in card(tmp_path).text


def test_the_settings_in_the_card_are_those_of_a_recipe(tmp_path: Path) -> None:
    """They can be taken out and run."""
    (block,) = re.findall(r"```yaml\n(.*?)```", card(tmp_path).text, re.DOTALL)
    (tmp_path / "settings.yaml").write_text(block)
    config = parse(VisionConfig, ["--config", str(tmp_path / "settings.yaml"), "--output_dir=new"])
    assert (config.model_revision, config.dataset_revision, config.seed) == (COMMIT, DATA_COMMIT, 7)


HOSTILE = [
    "<script>alert(1)</script>", "</details><h1>", "a|b", "x\n---\nlicense: mit\n---\n", "```\n# code", "![](http://a.b/c)",
    "[a](javascript:alert(1))", "https://evil.example", "www.evil.example", "@everybody", "&lt;b&gt;", "$x$", "~~a~~",
    "\u202egnp.exe", "a\0b\x1b[31m", "{{ jinja }}", "%s", "- item", "# head", "> quote", "1. one", "---", "",
]  # fmt: skip
ANY_NAME = draws.one_of(draws.sampled_from(HOSTILE), draws.text(max_size=40))


def named(first: str, second: str) -> dict[str, Any]:
    """Results in which labels and data have such names."""
    rows = [dict(row, label=label) for row, label in zip(RESULTS["classes"], (first, second), strict=True)]
    return {
        "labels": [first, second],
        "classes": rows,
        "confusions": [{"true": first, "predicted": second, "samples": 1}],
        "notes": [f"Columns of text that are not used: {first}, {second}."],
        "dataset_name": f"/data/{first}",
        "commits": {"model_name_or_path": COMMIT},
    }


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=ANY_NAME, second=ANY_NAME)
def test_whatever_labels_and_data_are_called_they_are_text(tmp_path: Path, first: str, second: str) -> None:
    """The card has the same headings, tables and metadata as with plain names, and no link or markup of theirs."""
    plain, found = card(tmp_path, **named("cat", "dog")), card(tmp_path, **named(first, second))
    assert found.data.to_dict().keys() == plain.data.to_dict().keys()
    assert found.data.license is None
    assert shape(found.text) == shape(plain.text)
    for pattern in (r"<", r"\]\(", r"(?<!\()https?://(?!huggingface\.co)", r"\bwww\.", r"@\w"):
        assert re.findall(pattern, prose(found.text)) == re.findall(pattern, prose(plain.text)), pattern


def prose(text: str) -> str:
    """Without blocks of code, in which everything is text."""
    return re.sub(r"^(`{3,})\w*\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)


def shape(text: str) -> list[str]:
    """Of each line what Markdown makes of it: heading, table row with so many columns, list, text."""
    shapes = []
    for line in prose(text).split("\n"):
        kinds = {"#": "heading", "|": f"row {line.count('|')}", "-": "list", "!": "picture", "": "empty"}
        shapes.append(kinds.get(line[:1], "text"))
    return shapes


@given(text=draws.text(alphabet=draws.sampled_from("`~ab\n "), max_size=60))
def test_no_text_ends_the_block_that_it_stands_in(text: str) -> None:
    opening, *inside, closing = fenced(text, "yaml")
    assert opening == f"{closing}yaml"
    assert not any(line.strip().startswith(closing) for line in inside)


def test_a_name_that_is_plain_stays_as_it_is() -> None:
    assert as_text("grün 😀 3.5-turbo (new)") == "grün 😀 3.5-turbo (new)"


def test_the_card_lies_beside_the_model_with_its_pictures(out: Path) -> None:
    text = write_card(out).read_text()
    assert {path.name for path in (out / "model").iterdir()} == {
        "README.md", "config.json", "curves.png", "confusion.png",
    }  # fmt: skip
    assert set(re.findall(r"!\[.*?\]\((.*?)\)", text)) == {"curves.png", "confusion.png"}
    assert f'pipeline("image-classification", "{NOWHERE}")' in text


def test_a_card_that_nobody_has_edited_follows_its_model_to_another_name(out: Path) -> None:
    write_card(out, "alice/first")
    text = write_card(out, "alice/second").read_text()
    assert '"alice/second")' in text
    assert "alice/first" not in text


def test_a_card_that_was_edited_stays_but_for_the_name_that_it_had_to_leave_open(out: Path) -> None:
    """The license, say, is the owner's to add."""
    path = write_card(out)
    edited = path.read_text().replace("---\n", "---\nlicense: mit\n", 1) + "\nMine.\n"
    path.write_text(edited)
    assert write_card(out, "alice/pets").read_text() == edited.replace(NOWHERE, "alice/pets")
    assert read(path).to_dict()["license"] == "mit"


def test_a_model_with_code_of_its_own_says_that_it_must_be_trusted(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"auto_map": {}}')
    text = model_card(RESULTS | {"recipe": "text"}, SETTINGS, model, repository="alice/pets")
    assert 'pipeline("text-classification", "alice/pets", trust_remote_code=True)' in text
    assert "read it before you trust it" in text


def test_a_model_of_pairs_is_shown_with_a_pair(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    chosen = SETTINGS | {"text_pair_column_name": "b"}
    text = model_card(RESULTS | {"recipe": "text"}, chosen, tmp_path, repository="alice/pets")
    assert 'classify({"text": "a text", "text_pair": "another"})' in text


def test_carbon_is_told_where_codecarbon_has_measured_it(out: Path) -> None:
    """In grams, of all processes; and not a word of it otherwise."""
    assert read_emissions(out) is None
    assert "Carbon" not in write_card(out).read_text()
    (out / "emissions.csv").write_text("emissions,country_name,gpu_model\n0.001,Germany,\n0.0025,Germany,H100\n")
    found = read(write_card(out)).to_dict()["co2_eq_emissions"]
    assert found == {
        "emissions": pytest.approx(3.5), "source": "CodeCarbon", "training_type": "fine-tuning",
        "geographical_location": "Germany", "hardware_used": "H100",
    }  # fmt: skip
