"""A model can be traced, cut and trained after predictions under `torch.inference_mode` in the same process."""

from functools import lru_cache
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hf_transfer.models.cutting import Cut
from hf_transfer.models.groups import check_boundary, trace_groups
from hf_transfer.models.inference_tensors import replace_inference_tensors
from hf_transfer.models.stubs import with_stored
from hf_transfer.strategies.freezing import FullFineTuning, PartialFineTuning, set_trainable
from tests.tiny_models import CLASSES, logits, pixels, tiny_model

LABELS = torch.tensor([0, 1])


def predict(model: nn.Module, name: str) -> Tensor:
    """Predict as a demo does."""
    with torch.inference_mode():
        result: Tensor = model(**pixels(name)).logits
    return result


def train(model: nn.Module, inputs: dict[str, Tensor]) -> None:
    cross_entropy(model(**inputs).logits, LABELS).backward()


def spoil_cache(model: nn.Module) -> None:
    """Predict when nothing is cached."""
    replace_inference_tensors(model)
    predict(model, "beit")


@pytest.fixture
def beit() -> nn.Module:
    """Another instance has filled the cache that all instances share."""
    model = tiny_model("beit")
    predict(tiny_model("beit"), "beit")
    return model


def test_transformers_caches_a_tensor_that_cannot_be_trained_with(beit: nn.Module) -> None:
    """If this fails, transformers has changed, and the other tests prove nothing."""
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        train(beit, pixels("beit"))


def test_a_model_can_be_traced(beit: nn.Module) -> None:
    groups = trace_groups(beit, pixels("beit"))
    spoil_cache(beit)
    assert check_boundary(beit, groups, 2, pixels("beit")).legal


def test_a_model_can_be_cut_and_gives_the_same_logits(beit: nn.Module) -> None:
    expected = logits(tiny_model("beit"), pixels("beit", seed=3))
    groups = trace_groups(beit, pixels("beit"))
    spoil_cache(beit)
    cut = Cut(beit, groups, 2, pixels("beit"))
    recorded = cut.record(beit, pixels("beit", seed=3))
    with cut.skipped(beit):
        assert torch.equal(logits(beit, with_stored(pixels("beit"), recorded)), expected)


@pytest.mark.parametrize("strategy", [FullFineTuning(), PartialFineTuning(layers=1)])
def test_each_stage_can_be_trained(beit: nn.Module, strategy: FullFineTuning | PartialFineTuning) -> None:
    groups = trace_groups(beit, pixels("beit"))
    for _ in range(2):
        spoil_cache(beit)
        set_trainable(beit, groups, strategy.stages(groups, 1)[0].trainable)
        train(beit, pixels("beit"))
    assert beit.get_parameter("classifier.weight").grad is not None


@lru_cache
def cached_positions(count: int) -> Tensor:
    """A cache in the file of a model."""
    return torch.arange(1.0, count + 1)


class Remembering(nn.Module):
    """A layer that keeps tensors of its first run: in a buffer, in an attribute and in two caches."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(6, CLASSES)
        self.register_buffer("scale", None, persistent=False)
        self.shift: Tensor | None = None

    @staticmethod
    @lru_cache
    def weights(count: int) -> Tensor:
        """A cache in the class."""
        return torch.ones(count)

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        if self.shift is None:
            self.scale, self.shift = torch.full((6,), 2.0), torch.full((6,), 3.0)
        hidden = pixel_values * self.scale * cached_positions(6) * self.weights(6)
        return SimpleNamespace(logits=self.classifier(hidden) * self.shift[0] + self.shift[:CLASSES])


def test_buffers_attributes_and_caches_become_trainable_and_keep_their_values() -> None:
    model, inputs = Remembering(), {"pixel_values": torch.ones(2, 6)}
    with torch.inference_mode():
        expected = model(**inputs).logits.clone()
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        train(model, inputs)
    replace_inference_tensors(model)
    train(model, inputs)
    assert torch.equal(logits(model, inputs), expected)
    assert [model.scale.is_inference(), model.shift is not None and model.shift.is_inference()] == [False, False]
    assert "scale" in dict(model.named_buffers())


def test_other_tensors_stay_the_same_objects() -> None:
    model, inputs = Remembering(), {"pixel_values": torch.ones(2, 6)}
    train(model, inputs)
    scale, shift = model.scale, model.shift
    replace_inference_tensors(model)
    assert model.scale is scale
    assert model.shift is shift
