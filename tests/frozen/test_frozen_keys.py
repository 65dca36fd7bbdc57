"""Which changes make another store, and which do not."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from hf_transfer.frozen import recording, store
from hf_transfer.versions import versions
from tests.frozen.frozen_task import HELD_OUT, SAMPLES, VIEWS, Task, texts, weight
from tests.tiny_models import CLASSES


def keys(task: Task, **more: Any) -> dict[str, str]:
    return {name: store.key for name, store in task.stores(**more).items()}


def class_names(model: nn.Module) -> None:
    names: Any = model
    names.config.id2label = {number: f"other {number}" for number in range(CLASSES)}
    names.config.label2id = {f"other {number}": number for number in range(CLASSES)}


TRAIN, ALL_STORES = {"train 0", "train 1"}, {"train 0", "train 1", "validation 0"}


@pytest.mark.parametrize(
    ("change", "changed"),
    [
        ({"edit": weight("vit.layers.1.mlp.fc1.weight")}, ALL_STORES),
        ({"edit": weight("vit.embeddings.cls_token")}, ALL_STORES),
        ({"cache_dtype": "bfloat16"}, ALL_STORES),
        ({"bf16": True}, ALL_STORES),
        ({"bf16": True, "cache_dtype": "float32"}, ALL_STORES),
        ({"trainable_layers": 2}, ALL_STORES),
        ({"model": {"layer_norm_eps": 1e-3}}, ALL_STORES),
        ({"label": 1}, TRAIN),
        ({"masked": (7,)}, TRAIN),
        ({"pixel": 0.5}, TRAIN),
        ({"seed_of_views": 1}, TRAIN),
        ({"edit": weight("vit.layers.2.mlp.fc1.weight")}, set()),
        ({"edit": weight("classifier.weight")}, set()),
        ({"edit": class_names}, set()),
        ({"learning_rate": 1e-4, "num_train_epochs": 7, "ema_decay": 0.5}, set()),
        ({"per_device_train_batch_size": 3, "per_device_eval_batch_size": 5}, set()),
        ({"seed": 5}, set()),
    ],
)
def test_a_store_has_another_key_if_its_content_would_differ(
    tmp_path: Path, change: dict[str, Any], changed: set[str]
) -> None:
    before = keys(Task.of(tmp_path, "vit"))
    assert before.keys() == ALL_STORES
    assert len(set(before.values())) == 3
    more = dict(change)
    task = Task.of(tmp_path, "vit", **{name: more.pop(name) for name in ("edit", "model", "masked") if name in more})
    task.seed = more.pop("seed_of_views", 0)
    task.rows.pixels[7, 0, 0, 0] += more.pop("pixel", 0.0)
    task.rows.labels[7] = (task.rows.labels[7] + more.pop("label", 0)) % CLASSES
    after = keys(task, **more)
    assert {name for name in before if before[name] != after[name]} == changed


VERSIONS = ["hf-transfer-learning", "torch", "transformers", "tokenizers", "pillow", "kornia", "numpy"]


@pytest.mark.parametrize("package", VERSIONS)
def test_another_version_of_a_library_that_changes_activations_makes_another_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    before = keys(Task(tmp_path))
    assert package in versions()
    monkeypatch.setattr(recording, "versions", lambda: versions() | {package: "99.0"})
    assert not set(keys(Task(tmp_path)).values()) & set(before.values())


@pytest.mark.parametrize("strategy", ["partial", "linear_probe"])
def test_another_version_does_not_read_stored_activations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    """Nor the features of a solved head; the first version finds its stores again."""
    task = Task(tmp_path)
    task.run(strategy=strategy)
    before = task.files()
    with monkeypatch.context() as patch:
        patch.setattr(recording, "versions", lambda: versions() | {"hf-transfer-learning": "99.0"})
        task.run(strategy=strategy)
    added = task.files().keys() - before.keys()
    assert len(added) == len(before) == 2
    task.run(strategy=strategy)
    assert task.files().keys() == before.keys() | added


@pytest.mark.parametrize("package", ["python", "scikit-learn", "datasets", "accelerate", "peft", "scipy"])
def test_another_version_of_a_library_that_does_not_makes_no_other_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    before = keys(Task(tmp_path))
    assert package in versions()
    monkeypatch.setattr(recording, "versions", lambda: versions() | {package: "99.0"})
    assert keys(Task(tmp_path)) == before


def test_another_chunk_format_makes_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys(Task(tmp_path))
    monkeypatch.setattr(store, "FORMAT", store.FORMAT + 1)
    assert not set(keys(Task(tmp_path)).values()) & set(before.values())


def test_other_tokens_make_another_key(tmp_path: Path) -> None:
    before = keys(Task.of(tmp_path, "bert"))
    task = Task.of(tmp_path, "bert")
    task.validation.inputs["input_ids"][0, 1] += 1
    after = keys(task)
    assert {name for name in before if before[name] != after[name]} == {"validation 0"}


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_bfloat16_takes_half_the_disk_space_and_changes_little(tmp_path: Path, name: str) -> None:
    single, half = Task.of(tmp_path / "single", name), Task.of(tmp_path / "half", name)
    expected, rounded = single.run(), half.run(cache_dtype="bfloat16")
    for row, live in zip(rounded.history, expected.history, strict=True):
        assert row["train_loss"] == pytest.approx(live["train_loss"], abs=1e-2)
        assert row["loss"] == pytest.approx(live["loss"], abs=1e-2)
    counts = [[5] * SAMPLES * VIEWS, [5] * HELD_OUT] if name == "vit" else [rows.lengths for rows in texts(single)]
    tokens = sum(int(sum(count)) for count in counts)
    sizes = [sum(map(len, task.files().values())) for task in (single, half)]
    assert sizes[0] - sizes[1] == pytest.approx(tokens * 24 * 2, abs=64)
