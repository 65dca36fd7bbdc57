"""Taps: what a backbone gives at several depths, against outputs of its modules; and the classifier that reads them."""

import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

from hf_transfer.errors import UserError
from hf_transfer.models import modeling_deep_probe, modeling_pooled_probe
from hf_transfer.models.groups import Group
from hf_transfer.models.modeling_deep_probe import DeepProbeConfig, pooled
from hf_transfer.models.taps import Tap, kind_and_block, taps_of, vectors_of
from tests.tapped_models import (
    IMAGES,
    OF_TEXTS,
    OUR_IMAGES,
    Tapped,
    mean_by_hand,
    outputs_of,
    padded_left,
    tapped,
)
from tests.tiny_models import logits
from tests.tiny_text_models import token_ids

NAMES = (*IMAGES, *OUR_IMAGES, *OF_TEXTS)
# Of these the last hidden state is what follows the norm behind the last block.
LAST_NORM = {"gpt2": "transformer.ln_f"} | dict.fromkeys(("t5", "mt5", "umt5"), "backbone.encoder.final_layer_norm")


def by_names(one: Tapped, *names: str) -> list[Tap]:
    return taps_of(one.model, one.groups, one.inputs, [kind_and_block(name) for name in names])


def vectors(one: Tapped, *names: str, inputs: dict[str, Tensor] | None = None) -> list[Tensor]:
    taps = by_names(one, *names)
    with torch.no_grad():
        return vectors_of(one.without_head(), taps, inputs or one.inputs)


@pytest.mark.parametrize("name", NAMES)
def test_means_are_those_of_what_the_blocks_return(name: str) -> None:
    one = tapped(name)
    modules = [*one.blocks[:-1], LAST_NORM.get(name, one.blocks[-1])]
    outputs, _ = outputs_of(one.model, modules, one.inputs)
    found = vectors(one, *(f"mean_{block}" for block in range(1, len(modules) + 1)))
    for vector, output in zip(found, outputs, strict=True):
        torch.testing.assert_close(vector, mean_by_hand(output, one.inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_tap_of_the_head_gives_the_logits_with_the_weights_of_the_head(name: str) -> None:
    one = tapped(name)
    expected, head = logits(one.model, one.inputs), one.model.get_submodule(one.head)
    (vector,) = vectors(one, "head")
    with torch.no_grad():
        torch.testing.assert_close(head(vector), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OF_TEXTS)
def test_a_text_has_the_same_vectors_alone_and_in_a_padded_batch(name: str) -> None:
    texts, names = token_ids(seed=3, rows=4), ("mean_1", "mean_3", "first_3", "head")
    together = vectors(tapped(name), *names, inputs=texts)
    for row, mask in enumerate(texts["attention_mask"].bool()):
        alone = {"input_ids": texts["input_ids"][row : row + 1, mask]}
        for vector, expected in zip(together, vectors(tapped(name), *names, inputs=alone), strict=True):
            torch.testing.assert_close(vector[row : row + 1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OF_TEXTS)
def test_padding_on_the_left_counts_in_no_mean_and_is_no_first_token(name: str) -> None:
    one, texts = tapped(name), padded_left(token_ids(seed=3, rows=4))
    (_, output), _ = outputs_of(one.model, one.blocks[:2], texts)
    first = torch.stack([row[mask][0] for row, mask in zip(output, texts["attention_mask"].bool(), strict=True)])
    mean, start = vectors(one, "mean_2", "first_2", inputs=texts)
    torch.testing.assert_close(mean, mean_by_hand(output, texts), rtol=1e-5, atol=1e-6)
    assert torch.equal(start, first)


def test_values_of_padding_have_no_effect_on_a_mean() -> None:
    """They may be anything, also NaN."""
    hidden = torch.tensor([[[1.0], [float("nan")]], [[float("inf")], [5.0]]])
    assert pooled("mean", hidden, torch.tensor([[1, 0], [0, 1]])).tolist() == [[1.0], [5.0]]
    assert pooled("first", hidden, torch.tensor([[1, 0], [0, 1]])).tolist() == [[1.0], [5.0]]


def test_a_mean_in_half_precision_is_summed_in_single_precision() -> None:
    """The sum is larger than the largest number in half precision."""
    hidden = torch.full((1, 2000, 2), 100.0, dtype=torch.float16)
    assert pooled("mean", hidden, None).tolist() == [[100.0, 100.0]]


@pytest.mark.parametrize("name", NAMES)
def test_the_usual_taps_are_shares_of_the_depth(name: str) -> None:
    one = tapped(name)
    blocks, choice = len(one.blocks), one.usual()
    depths = {math.ceil(blocks * share) for share in (1 / 3, 1 / 2, 2 / 3, 3 / 4, 1)}
    means = {f"mean_{depth}" for depth in depths}
    combined = {f"mean_{math.ceil(blocks * share)}" for share in (1 / 3, 2 / 3, 1)}
    first = {f"first_{blocks}"} if name in OF_TEXTS and name not in ("gpt2", "clip_text") else set()
    # The head reads the mean of the last block.
    repeated = {f"mean_{blocks}"} if name in ("resnet_basic", "t5", "mt5", "umt5", "splinter") else set()
    assert {tap.name for tap in choice.taps} == {"head"} | (means | first) - repeated
    *singles, together = choice.combinations
    assert singles == [(place,) for place in range(len(choice.taps))]
    head = set() if name in OF_TEXTS and not repeated else {"head"}
    assert {choice.taps[place].name for place in together} == head | (combined - repeated)


@pytest.mark.parametrize("name", NAMES)
def test_a_classifier_reads_the_chosen_taps_alone(name: str, tmp_path: Path) -> None:
    """Several are scaled to unit length. Loaded by transformers alone, it has the same logits."""
    one = tapped(name)
    model = one.all_taps()
    generator = torch.Generator().manual_seed(1)
    combinations = model.choice.combinations
    with torch.no_grad():
        everything = vectors_of(model.backbone, model.choice.taps, one.inputs)
    for number, places in enumerate((combinations[0], combinations[-1])):
        read = [everything[place] for place in places]
        features = read[0] if len(read) == 1 else torch.cat([normalize(vector) for vector in read], 1)
        weight = torch.randn(5, features.shape[1], generator=generator)
        bias = torch.randn(5, generator=generator)
        model.read_only(places, weight, bias)
        expected = features @ weight.T + (0 if model.classifier.bias is None else bias)
        torch.testing.assert_close(logits(model, one.inputs), expected, rtol=1e-4, atol=1e-5)
        finished = model.with_read_taps()
        torch.testing.assert_close(logits(finished, one.inputs), expected, rtol=1e-4, atol=1e-5)
        finished.save_pretrained(tmp_path / str(number))
        auto = AutoModelForSequenceClassification if name in OF_TEXTS else AutoModelForImageClassification
        again = auto.from_pretrained(tmp_path / str(number), trust_remote_code=True).eval()
        torch.testing.assert_close(logits(again, one.inputs), expected, rtol=1e-4, atol=1e-5)
        assert again.config.taps == [list(model.choice.taps[place].saved) for place in places]
        assert again.config.backbone_config.num_labels == 2


def test_a_classifier_starts_with_several_depths_and_its_choice_is_in_its_state() -> None:
    """A checkpoint of a run restores it."""
    model = tapped("bert").all_taps()
    assert model.is_read.tolist() == [False, True, True, True, False]
    model.read_only((1,), torch.ones(5, 24), torch.zeros(5))
    again = tapped("bert").all_taps()
    again.load_state_dict(model.state_dict())
    assert again.is_read.tolist() == model.is_read.tolist() == [False, True, False, False, False]


def test_a_model_without_a_hidden_state_for_each_block_is_refused() -> None:
    one = tapped("vit")
    more = [*one.groups[:2], Group("one more", (), ()), Group("another", (), ()), *one.groups[2:]]
    with pytest.raises(UserError) as error:
        taps_of(one.model, more, one.inputs, [("mean", 1)])
    assert "a hidden state for each of its 5 blocks" in str(error.value)
    assert "ViTForImageClassification, which returns 4" in str(error.value)


def test_an_unknown_tap_is_refused() -> None:
    with pytest.raises(ValueError, match="'head', 'mean' or 'first'"):
        DeepProbeConfig.from_dict({"taps": [["max", 1]], "widths": [3]})
    with pytest.raises(ValueError, match="each with a width"):
        DeepProbeConfig.from_dict({"taps": [["mean", 1]], "widths": [3, 4]})


def imports(module: ModuleType) -> set[str]:
    """The packages that a file imports, and the files beside it."""
    lines = Path(str(module.__file__)).read_text(encoding="utf-8").splitlines()
    names = [line.split()[1] for line in lines if line.startswith(("import ", "from "))]
    return {name if name.startswith(".") else name.partition(".")[0] for name in names}


def test_the_modelling_files_import_only_torch_and_transformers() -> None:
    """And each other."""
    plain = {"inspect", "collections", "contextlib", "typing", "torch", "transformers"}
    assert imports(modeling_deep_probe) == plain
    files = {".modeling_deep_probe", ".modeling_pooled", ".modeling_pooled_image"}
    assert imports(modeling_pooled_probe) == {"typing", "transformers", *files}
