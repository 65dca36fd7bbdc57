"""Images with texts in the loop: stores for both towers, the losses of single modalities, and runs that are killed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from hf_transfer.checkpoints.checkpoint import Checkpoints
from hf_transfer.data.batches import LabelledInputs
from hf_transfer.targets.classes import Classes
from hf_transfer.training.objective import Objective
from tests.frozen.frozen_task import without_clocks
from tests.tiny_models import state
from tests.training.killed_children import exit_code, killed_in_step
from tests.training.resumed_runs import save_weights, weights
from tests.training.toy_pairs import pair_settings, train_pair


@pytest.mark.parametrize(
    ("name", "strategies", "fusion"),
    [
        ("vit", {"strategy": "linear_probe"}, "concat"),
        ("clip", {"strategy": "linear_probe"}, "attention"),
        ("resnet_basic", {"strategy": "partial"}, "gated"),
        ("vit", {"image_strategy": "full", "text_strategy": "linear_probe"}, "concat"),
        ("resnet_basic", {"image_strategy": "linear_probe", "text_strategy": "lora"}, "product"),
        ("vit", {"strategy": "lp_ft"}, "gated"),
        ("vit", {"strategy": "partial", "bf16": True}, "concat"),
    ],
)
def test_runs_with_and_without_a_store_are_equal_for_both_towers(
    name: str, strategies: dict[str, Any], fusion: str, tmp_path: Path
) -> None:
    """Also if only one tower is frozen, and if both are frozen in a first stage only."""
    runs = [
        train_pair(pair_settings(tmp_path, cache_frozen=cache, **strategies), name, fusion=fusion)
        for cache in ("on", "off")
    ]
    on, off = (without_clocks(run.history) for run in runs)
    for row, expected in zip(on, off, strict=True):
        assert row == pytest.approx(expected, abs=1e-4)
    live = state(runs[1].model)
    assert state(runs[0].model).keys() == live.keys()
    for key, value in state(runs[0].model).items():
        torch.testing.assert_close(value, live[key], rtol=0, atol=1e-4, msg=key)
    assert list((tmp_path / "cache").rglob("*.safetensors"))


def test_the_losses_of_single_modalities_count_with_their_weight_for_samples_that_have_the_modality() -> None:
    drawn = torch.Generator().manual_seed(0)
    both, image, text = (torch.randn(4, 3, generator=drawn) for _ in range(3))
    labels, counted = torch.tensor([0, 2, 1, 1]), torch.tensor([True, True, True, False])
    inputs = {
        "image_present": torch.tensor([True, False, True, True]),
        "text_present": torch.tensor([False, True, True, True]),
    }
    output = SimpleNamespace(logits=both, image_logits=image, text_logits=text)
    target = Classes(("a", "b", "c"))
    objective, batch = Objective(target, auxiliary_weight=0.3), LabelledInputs(inputs, labels, counted, torch.arange(4))
    loss = objective.of_output(output, batch, objective.weights(batch))
    parts = [cross_entropy(image[[0, 2]], labels[[0, 2]]), cross_entropy(text[[1, 2]], labels[[1, 2]])]
    expected = cross_entropy(both[:3], labels[:3]) + 0.3 * (parts[0] + parts[1])
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    one_tower = SimpleNamespace(logits=both)
    batch = batch._replace(inputs={})
    loss = objective.of_output(one_tower, batch, objective.weights(batch))
    assert loss == Objective(target)(both, labels, counted)


def test_the_heads_of_single_modalities_learn_with_their_weight(tmp_path: Path) -> None:
    """With a weight of 0 their biases do not change."""
    biases = [
        state(train_pair(pair_settings(tmp_path, auxiliary_weight=weight)).model)["image_classifier.bias"]
        for weight in (0.0, 0.5)
    ]
    assert not torch.allclose(biases[0], biases[1], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("strategies", [{"strategy": "full"}, {"image_strategy": "gradual", "text_strategy": "lora"}])
def test_a_killed_run_resumes_to_the_same_bytes(strategies: dict[str, Any], tmp_path: Path) -> None:
    """The generator that draws which modality is dropped is in the checkpoint."""

    def work(out: Path) -> None:
        config = pair_settings(out, save_steps=2, modality_dropout=0.5, num_train_epochs=3, **strategies)
        save_weights(train_pair(config).model, out / "weights.safetensors")

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for out in (whole, killed):
        out.mkdir()
    assert exit_code(lambda: work(whole)) == 0
    assert killed_in_step(9, lambda: work(killed)) == -9
    newest, _ = Checkpoints(killed / "checkpoints").newest()
    assert newest is not None
    assert exit_code(lambda: work(killed)) == 0
    assert weights(killed) == weights(whole)
