"""What another store is made for, and what not."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.tiny_models import CLASSES
from tests.training.frozen_task import HELD_OUT, SAMPLES, VIEWS, Task, texts, weight


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
def test_the_store_has_another_key_where_its_content_would_be_another(
    tmp_path: Path, change: dict[str, Any], changed: set[str]
) -> None:
    before = keys(Task.of(tmp_path, "vit"))
    assert before.keys() == ALL_STORES
    assert len(set(before.values())) == 3
    more = dict(change)
    task = Task.of(tmp_path, "vit", **{name: more.pop(name) for name in ("edit", "model") if name in more})
    task.seed = more.pop("seed_of_views", 0)
    task.rows.pixels[7, 0, 0, 0] += more.pop("pixel", 0.0)
    task.rows.labels[7] = (task.rows.labels[7] + more.pop("label", 0)) % CLASSES
    after = keys(task, **more)
    assert {name for name in before if before[name] != after[name]} == changed


def test_other_tokens_make_another_key(tmp_path: Path) -> None:
    before = keys(Task.of(tmp_path, "bert"))
    task = Task.of(tmp_path, "bert")
    task.validation.inputs["input_ids"][0, 1] += 1
    after = keys(task)
    assert {name for name in before if before[name] != after[name]} == {"validation 0"}


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_half_precision_takes_half_the_room_and_costs_little(tmp_path: Path, name: str) -> None:
    whole, half = Task.of(tmp_path / "whole", name), Task.of(tmp_path / "half", name)
    expected, found = whole.run(), half.run(cache_dtype="bfloat16")
    for row, live in zip(found.history, expected.history, strict=True):
        assert row["train_loss"] == pytest.approx(live["train_loss"], abs=1e-2)
        assert row["loss"] == pytest.approx(live["loss"], abs=1e-2)
    counts = [[5] * SAMPLES * VIEWS, [5] * HELD_OUT] if name == "vit" else [rows.lengths for rows in texts(whole)]
    tokens = sum(int(sum(count)) for count in counts)
    sizes = [sum(map(len, task.files().values())) for task in (whole, half)]
    assert sizes[0] - sizes[1] == pytest.approx(tokens * 24 * 2, abs=64)
