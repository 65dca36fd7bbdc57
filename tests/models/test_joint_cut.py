"""Both towers cut at once: stored activations give the logits of a live run."""

import pytest
import torch
from torch import Tensor

from hf_transfer.models.cutting import CannotCutError
from hf_transfer.models.fusion import FusionModel
from hf_transfer.models.joint_cut import JointCut
from hf_transfer.models.modeling_pair import INPUTS
from hf_transfer.models.stubs import with_stored
from hf_transfer.models.towers import groups_of, trace
from hf_transfer.models.tracing import evaluating
from tests.tiny_models import logits, state
from tests.tiny_pairs import PAIRS, pair_inputs, tiny_pair


def joint(model: FusionModel, inputs: dict[str, Tensor], left: tuple[int, int]) -> JointCut:
    """Both towers cut; so many groups of each, without the head, lie after the cuts."""
    groups = trace(model, inputs)
    towers = []
    for (tower, names), after in zip(INPUTS.items(), left, strict=True):
        of_tower = groups_of(tower, groups)
        towers.append((of_tower, len(of_tower) - 1 - after, names))
    return JointCut(model, towers, inputs)


@pytest.mark.parametrize("fusion", ["gated", "attention"])
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("left", [(0, 0), (1, 2)])
def test_stored_activations_of_both_towers_give_the_logits_of_a_live_run(
    name: str, fusion: str, left: tuple[int, int]
) -> None:
    model, inputs = tiny_pair(name, fusion=fusion), pair_inputs(name)
    if fusion == "attention" and PAIRS[name][0] == "pooler" and left == (0, 0):
        # Attention reads the patches, which the output of the pooler does not have.
        with pytest.raises(CannotCutError, match="not only through image_tower"):
            joint(model, inputs, left)
        return
    cut = joint(model, inputs, left)
    other = pair_inputs(name, seed=5, rows=3)
    other["image_present"][1] = False
    before, live = state(model), logits(model, other)
    recorded = cut.record(model, other)
    assert len(recorded) == len(cut.crossing)
    for crossing, values in zip(cut.crossing, recorded, strict=True):
        if crossing.by_token:
            # The store keeps no padding.
            values[~other["attention_mask"].bool()] = 0
    with evaluating(model), cut.skipped(model):
        assert torch.allclose(logits(model, with_stored(cut.blank(other), recorded)), live, atol=1e-5)
        assert len(list(model.parameters())) < len(before)
    assert all(torch.equal(value, before[key]) for key, value in state(model).items())
    assert torch.equal(logits(model, other), live)


def test_each_tower_is_run_once_while_recording(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny_pair("resnet_basic"), pair_inputs("resnet_basic")
    cut = joint(model, inputs, (0, 0))
    calls = []
    first = model.image_tower.get_submodule("embedder")
    first.register_forward_hook(lambda *_: calls.append(1))
    cut.record(model, inputs)
    assert len(calls) == 1


def test_each_tower_takes_its_own_activations_and_needs_them() -> None:
    model, inputs = tiny_pair("vit"), pair_inputs("vit")
    cut = joint(model, inputs, (1, 2))
    batches = [pair_inputs("vit", seed=seed, rows=3) for seed in (1, 2)]
    expected = [logits(model, batch) for batch in batches]
    recorded = [cut.record(model, batch) for batch in batches]
    assert len(cut.crossing) == 2
    with cut.skipped(model) as modules:
        assert {name.partition(".")[0] for name in modules} == {"image_tower", "text_tower"}
        for number in (0, 1, 0):
            stored = with_stored(cut.blank(batches[number]), recorded[number])
            assert torch.allclose(logits(model, stored), expected[number], atol=1e-5)
        for missing in ("stored_activation_0", "stored_activation_1"):
            stored = with_stored(batches[0], recorded[0])
            del stored[missing]
            with pytest.raises(ValueError, match=f"{missing} was not among its inputs"):
                logits(model, stored)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
