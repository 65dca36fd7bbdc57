"""Both towers cut at once: stored activations give the logits of a live run."""

import pytest
import torch
from torch import Tensor

from hf_transfer.models.cutting import CannotCutError
from hf_transfer.models.fusion import FusionModel
from hf_transfer.models.groups import evaluating
from hf_transfer.models.joint_cut import JointCut
from hf_transfer.models.towers import INPUTS, groups_of, trace_towers
from tests.tiny_models import logits, state
from tests.tiny_pairs import PAIRS, pair_inputs, tiny_pair


def joint(model: FusionModel, inputs: dict[str, Tensor], left: tuple[int, int]) -> JointCut:
    """Both towers cut, so many groups below their ends."""
    groups = trace_towers(model, inputs)
    towers = []
    for (tower, names), kept in zip(INPUTS.items(), left, strict=True):
        own = groups_of(tower, groups)
        towers.append((own, len(own) - 1 - kept, names))
    return JointCut(model, towers, inputs)


@pytest.mark.parametrize("fusion", ["gated", "attention"])
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("left", [(0, 0), (1, 2)])
def test_stored_activations_of_both_towers_give_the_logits_of_a_live_run(
    name: str, fusion: str, left: tuple[int, int]
) -> None:
    model, inputs = tiny_pair(name, fusion=fusion), pair_inputs(name)
    if fusion == "attention" and PAIRS[name][0] == "pooler" and left == (0, 0):
        # The words look at places, which a cut behind the pooler would not keep.
        with pytest.raises(CannotCutError, match="reach past image_tower"):
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
            # Padding is not stored.
            values[~other["attention_mask"].bool()] = 0
    with evaluating(model), cut.skipped(model) as stand:
        stand.put(recorded, other)
        assert torch.allclose(logits(model, cut.blank(other)), live, atol=1e-5)
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
