"""The model whose head reads the mean of all tokens or the first one: values by hand, groups, gradients."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_transfer.models import modeling_pooled
from hf_transfer.models.encoders import Pooling
from hf_transfer.models.groups import check_boundary, trace_groups
from hf_transfer.models.modeling_pooled import (
    PooledConfig,
    PooledForSequenceClassification,
    first_token,
    last_token,
    mean,
    of_equal_length,
)
from hf_transfer.models.pretrained import Checkpoint
from tests.tiny_models import logits, perturb
from tests.tiny_text_models import CLASSES, PAD, TEXT_ARCHITECTURES, token_ids

# The first token of GPT-2 sees no other token.
KINDS: list[tuple[str, Pooling]] = [
    *((name, "mean") for name in TEXT_ARCHITECTURES),
    *((name, "cls") for name in TEXT_ARCHITECTURES if name != "gpt2"),
]


def pooled(name: str, pooling: Pooling, *, classes: int = CLASSES, **settings: Any) -> PreTrainedModel:
    """A perturbed tiny model in evaluation mode."""
    config = PooledConfig(
        text_config=TEXT_ARCHITECTURES[name].config(), pooling=pooling, num_labels=classes, **settings
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = PooledForSequenceClassification(config)
    perturb(model, 1)
    model.train(False)
    return model


def padded_left(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same texts, padded on the left."""
    kept = inputs["attention_mask"].bool()
    moved = {name: torch.full_like(value, PAD) for name, value in inputs.items()}
    for row, mask in enumerate(kept):
        for name, value in inputs.items():
            moved[name][row, len(mask) - int(mask.sum()) :] = value[row, mask]
    return moved


@pytest.mark.parametrize("is_normalized", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("name", "pooling"), KINDS)
def test_the_logits_are_those_of_the_pooled_tokens_by_hand(
    name: str, pooling: Pooling, side: str, is_normalized: bool
) -> None:
    """Each text by itself, in numpy, from the backbone's last hidden states."""
    model = pooled(name, pooling, normalized=is_normalized)
    inputs = token_ids(seed=3, rows=4)
    if side == "left":
        inputs = padded_left(inputs)
    with torch.no_grad():
        hidden = model.get_submodule("backbone")(**inputs).last_hidden_state.double().numpy()
    weight, bias = (model.get_parameter(f"classifier.{key}").detach().double().numpy() for key in ("weight", "bias"))
    expected = []
    for row, mask in zip(hidden, inputs["attention_mask"].numpy(), strict=True):
        tokens = [vector for vector, real in zip(row, mask, strict=True) if real]
        vector = tokens[0] if pooling == "cls" else np.stack(tokens).mean(0)
        if is_normalized:
            vector = vector / np.sqrt(np.square(vector).mean())
        expected.append(weight @ vector + bias)
    np.testing.assert_allclose(logits(model, inputs).numpy(), np.stack(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "pooling"), KINDS)
def test_a_text_has_the_same_logits_alone_and_in_a_padded_batch(name: str, pooling: Pooling) -> None:
    model = pooled(name, pooling)
    inputs = token_ids(seed=4, rows=4)
    together = logits(model, inputs)
    for row, mask in enumerate(inputs["attention_mask"].bool()):
        alone = logits(model, {"input_ids": inputs["input_ids"][row : row + 1, mask]})
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_the_first_token_is_the_first_that_is_not_padding() -> None:
    hidden = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[0, 0, 1], [1, 1, 0]])
    assert first_token(hidden, mask).tolist() == [[4.0, 5.0], [6.0, 7.0]]
    assert first_token(hidden, None).tolist() == [[0.0, 1.0], [6.0, 7.0]]


@pytest.mark.parametrize("masked", [True, False])
def test_a_mean_in_half_precision_is_summed_in_single_precision(masked: bool) -> None:
    """The sum is larger than the largest number in half precision."""
    hidden = torch.full((1, 2000, 2), 100.0, dtype=torch.float16)
    result = mean(hidden, torch.ones(1, 2000) if masked else None)
    assert result.dtype == torch.float16
    assert result.tolist() == [[100.0, 100.0]]


@pytest.mark.parametrize(("dtype", "exactness"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
def test_vectors_of_one_length_keep_their_directions(dtype: torch.dtype, exactness: float, size: float) -> None:
    """The length of the longest of them does not fit into float16."""
    vectors = (torch.tensor([[3.0, 4.0, 0.0, 0.0], [1.0, 1.0, -1.0, 1.0]]) * size).repeat(1, 16).to(dtype)
    result = of_equal_length(vectors)
    assert result.dtype == dtype
    expected = torch.tensor([[1.2, 1.6, 0.0, 0.0], [1.0, 1.0, -1.0, 1.0]]).repeat(1, 16)
    torch.testing.assert_close(result.float(), expected, rtol=exactness, atol=exactness)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_vector_of_zeros_stays_and_its_gradient_is_finite(dtype: torch.dtype) -> None:
    vectors = torch.zeros(2, 24, dtype=dtype, requires_grad=True)
    result = of_equal_length(vectors)
    assert not result.any()
    result.sum().backward()
    assert vectors.grad is not None
    assert vectors.grad.isfinite().all()


def test_a_text_without_tokens_gives_finite_gradients_behind_vectors_of_one_length() -> None:
    """Its mean is a vector of zeros, whose length has no derivative."""
    model, inputs = pooled("bert", "mean", normalized=True), token_ids()
    inputs["attention_mask"][0] = 0
    model(**inputs).logits.square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(gradients) == len(list(model.parameters()))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_a_model_of_an_earlier_version_reads_vectors_as_they_are() -> None:
    """Its configuration does not have the setting."""
    settings = pooled("bert", "mean").config.to_dict()
    assert settings.pop("normalized") is False
    assert PooledConfig.from_dict(settings).normalized is False


def test_the_last_token_is_the_last_that_is_not_padding_on_either_side() -> None:
    hidden = torch.arange(12.0).reshape(2, 3, 2)
    assert last_token(hidden, torch.tensor([[0, 1, 1], [1, 1, 0]])).tolist() == [[4.0, 5.0], [8.0, 9.0]]
    assert last_token(hidden, None).tolist() == [[4.0, 5.0], [10.0, 11.0]]


def test_values_of_padding_have_no_effect_on_the_mean() -> None:
    """They may be anything, also NaN, and a text may have no token."""
    hidden = torch.tensor([[[1.0], [float("nan")]], [[float("inf")], [5.0]], [[2.0], [2.0]]])
    assert mean(hidden, torch.tensor([[1, 0], [0, 1], [0, 0]])).tolist() == [[1.0], [5.0], [0.0]]


def test_a_backbone_gets_only_inputs_that_it_takes() -> None:
    """BERT takes token types, DistilBERT does not."""
    inputs = token_ids()
    inputs["token_type_ids"] = torch.ones_like(inputs["input_ids"])
    for name, more in (("distilbert", set[str]()), ("bert", {"token_type_ids", "use_cache"})):
        model, given = pooled(name, "mean"), dict[str, Any]()
        model.get_submodule("backbone").register_forward_pre_hook(
            lambda _module, _args, kwargs, given=given: given.update(kwargs), with_kwargs=True
        )
        logits(model, inputs)
        assert given.keys() == {"input_ids", "attention_mask"} | more


@pytest.mark.parametrize("name", TEXT_ARCHITECTURES)
def test_no_pooler_is_kept_and_every_weight_learns(name: str) -> None:
    """A pooler without a gradient would stop DistributedDataParallel."""
    model = pooled(name, "mean")
    model(**token_ids()).logits.square().sum().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(("name", "pooling"), KINDS)
def test_the_groups_are_the_blocks_and_the_model_can_be_cut_after_each(name: str, pooling: Pooling) -> None:
    """The blocks are those of the backbone's own classifier; the head reads the output of the last block."""
    model, inputs = pooled(name, pooling), token_ids()
    groups = trace_groups(model, inputs)
    blocks = [f"backbone.{block.partition('.')[2]}" for block in TEXT_ARCHITECTURES[name].blocks]
    assert [group.name for group in groups] == ["embeddings", *blocks, "final", "head"]
    assert groups[-1].parameters == ("classifier.weight", "classifier.bias")
    assert {parameter for group in groups for parameter in group.parameters} == set(dict(model.named_parameters()))
    for count in range(1, len(groups)):
        boundary = check_boundary(model, groups, count, inputs)
        assert (boundary.legal, boundary.reason) == (True, "")
        assert not boundary.live or name == "deberta"


def test_the_loss_is_the_cross_entropy_and_the_result_may_be_a_tuple() -> None:
    model, inputs, labels = pooled("bert", "mean"), token_ids(), torch.tensor([4, 0])
    with torch.no_grad():
        result = model(**inputs, labels=labels)
        loss, given = model(**inputs, labels=labels, return_dict=False)
    torch.testing.assert_close(result.loss, nn.functional.cross_entropy(result.logits, labels))
    assert torch.equal(given, result.logits)
    assert torch.equal(loss, result.loss)


def test_a_copy_in_half_precision_and_recomputed_activations_give_the_same_logits() -> None:
    """Recomputing gives the same gradients, bit for bit."""
    model, inputs = pooled("bert", "mean"), token_ids()
    expected = logits(model, inputs)
    assert torch.equal(logits(deepcopy(model), inputs), expected)
    half = logits(deepcopy(model).bfloat16(), inputs)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.05)

    gradients = []
    for recompute in (False, True):
        copy = deepcopy(model).train()
        for module in copy.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if recompute:
            copy.activation_checkpointing_enable({"use_reentrant": False})
            assert copy.is_activation_checkpointing
        copy(**inputs).logits.square().sum().backward()
        gradients.append([parameter.grad for parameter in copy.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None
        assert torch.equal(plain, recomputed)


def test_the_modelling_file_imports_only_torch_and_transformers() -> None:
    text = Path(modeling_pooled.__file__).read_text(encoding="utf-8")
    lines = [line.split()[1].partition(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))]
    assert set(lines) == {"inspect", "math", "collections", "typing", "torch", "transformers"}


@pytest.mark.parametrize("is_normalized", [False, True])
@pytest.mark.parametrize(("name", "pooling"), KINDS)
def test_a_saved_and_loaded_model_gives_the_same_logits(
    name: str, pooling: Pooling, is_normalized: bool, tmp_path: Path
) -> None:
    model = pooled(name, pooling, normalized=is_normalized)
    model.save_pretrained(tmp_path)
    again = Checkpoint(str(tmp_path), task="text-classification").finished_classifier()
    assert (again.config.pooling, again.config.normalized) == (pooling, is_normalized)
    assert torch.equal(logits(again.eval(), token_ids()), logits(model, token_ids()))


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match="'mean', 'cls' or 'last', not 'max'"):
        PooledConfig.from_dict({"pooling": "max"})
