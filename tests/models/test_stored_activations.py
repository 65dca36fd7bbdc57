"""The inputs of a cut model: each run needs the stored activations of its batch, and uses only these."""

import copy
import weakref
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_transfer.models.cutting import Cut
from hf_transfer.models.groups import trace_groups
from hf_transfer.models.stubs import with_stored
from tests.models.cut_models import EXAMPLE, Toy, batch, cut_everywhere
from tests.tiny_models import logits

MISSING = "replaced by stored activations, and stored_activation_0 was not among its inputs"
two_models = pytest.mark.parametrize("name", ["vit", "bert"])


@two_models
def test_each_run_uses_the_activations_of_its_batch(name: str) -> None:
    """Also of batches of other sizes, one after the other and again."""
    model, _, cuts, _ = cut_everywhere(name)
    batches = [batch(name, seed=seed, rows=rows) for seed, rows in ((1, 2), (2, 2), (3, 4))]
    expected = [logits(model, inputs) for inputs in batches]
    recorded = [cuts[2].record(model, inputs) for inputs in batches]
    with cuts[2].skipped(model):
        for number in (0, 1, 2, 0):
            inputs = with_stored(cuts[2].blank(batches[number]), recorded[number])
            assert torch.equal(logits(model, inputs), expected[number])


@two_models
def test_a_run_without_stored_activations_is_an_error(name: str) -> None:
    """Those of the run before are not used again, not even by a part of the model."""
    model, _, cuts, _ = cut_everywhere(name)
    inputs = batch(name, seed=1)
    recorded = cuts[2].record(model, inputs)
    with cuts[2].skipped(model):
        for _ in range(2):
            with pytest.raises(ValueError, match=MISSING):
                model(**inputs)
            with pytest.raises(ValueError, match=MISSING):
                model.get_submodule(name)(**inputs)
            logits(model, with_stored(inputs, recorded))
    assert torch.isfinite(logits(model, inputs)).all()


def test_stored_activations_are_released_after_a_run_and_after_an_error() -> None:
    """Those of the last batch would take memory until the next one."""
    model = Toy()
    cut = Cut(model, trace_groups(model, EXAMPLE), 2, EXAMPLE)

    def fail(*_: Any) -> None:
        raise KeyError

    with cut.skipped(model), torch.no_grad():
        for fails in (False, True):
            (recorded,) = cut.record(copy.deepcopy(Toy()), EXAMPLE)
            kept = weakref.ref(recorded)
            handle = model.classifier.register_forward_hook(fail) if fails else None
            with suppress(KeyError):
                model(**with_stored(EXAMPLE, [recorded]))
            if handle:
                handle.remove()
            del recorded
            assert kept() is None
        with pytest.raises(ValueError, match=MISSING):
            model(**EXAMPLE)


@two_models
def test_a_deep_copy_uses_its_own_activations(name: str) -> None:
    """FSDP trains a copy, which has no copies of the skipped modules. Here it runs within a run of the model."""
    model, _, cuts, _ = cut_everywhere(name)
    first, second = (batch(name, seed=seed, rows=rows) for seed, rows in ((1, 2), (2, 3)))
    expected = logits(model, first), logits(model, second)
    recorded = cuts[2].record(model, first), cuts[2].record(model, second)
    results: list[Tensor] = []
    with cuts[2].skipped(model) as modules:
        twin = copy.deepcopy(model)
        assert twin.state_dict().keys() == model.state_dict().keys()

        def run_twin(*_: Any) -> None:
            results.append(logits(twin, with_stored(cuts[2].blank(second), recorded[1])))

        handle = model.register_forward_pre_hook(run_twin)
        results.append(logits(model, with_stored(cuts[2].blank(first), recorded[0])))
        handle.remove()
        for one in (model, twin):
            with pytest.raises(ValueError, match=MISSING):
                one(**first)
        for key, module in modules.items():
            stub: Any = twin.get_submodule(key)
            assert stub is not model.get_submodule(key)
            assert stub._original[0] is module
    assert torch.equal(results[0], expected[1])
    assert torch.equal(results[1], expected[0])


def test_stored_activations_reach_a_model_whose_forward_is_wrapped() -> None:
    """accelerate replaces `forward` on the instance, for autocast."""
    model, _, cuts, _ = cut_everywhere("vit")
    inputs = batch("vit", seed=1)
    expected, recorded = logits(model, inputs), cuts[2].record(model, inputs)
    plain = model.forward
    with cuts[2].skipped(model):
        model.forward = torch.autocast("cpu", torch.bfloat16)(plain)
        wrapped = logits(model, with_stored(cuts[2].blank(inputs), recorded))
        del model.forward
    assert wrapped.dtype == torch.bfloat16
    torch.testing.assert_close(wrapped.float(), expected, rtol=0.05, atol=0.05)
