"""A cut model compared with the whole one: activations recorded before the cut give the logits of a live run."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_transfer.models.cutting import CannotCutError, Cut
from hf_transfer.models.groups import trace_groups
from hf_transfer.models.pretrained import Checkpoint, load_classifier
from hf_transfer.models.stubs import Crossing, with_stored
from hf_transfer.targets.classes import Classes
from tests.export.finished_models import model_of
from tests.models.cut_models import (
    ENCODERS,
    EXAMPLE,
    LONGEST,
    NAMES,
    Batch,
    Toy,
    batch,
    cut_everywhere,
    is_text,
    logits_after,
)
from tests.models.families import IMAGES
from tests.tiny_models import CLASSES, logits, state
from tests.tiny_text_models import TEXT_ARCHITECTURES, model_and_inputs, token_ids

FLOATS = Crossing(("samples", 8), torch.float32)
# Places where a model cannot be cut, by the number of groups before them.
REFUSED = {
    # Its last norm reads only the class token, and the head the mean of all patches.
    ("clip", 5): "later layers depend on vision_model.embeddings, vision_model.embeddings.patch_embedding, "
    "vision_model.encoder.layers.0.layer_norm1 not only through vision_model.post_layernorm",
    **{(name, 1): "backbone.encoder.dropout runs more than once" for name in ENCODERS},
}
# Modules that blocks use although no data flows through them: they are computed until after the last block.
LIVE = {
    "beit": ("beit.shared_position_bias",),
    "deberta": ("deberta.encoder.LayerNorm", "deberta.encoder.rel_embeddings"),
    **dict.fromkeys(ENCODERS, ("backbone.shared",)),
}
# Only their weights are read, so they need no stub.
NEVER_CALLED = ("deberta.encoder.rel_embeddings", "backbone.shared")
all_architectures = pytest.mark.parametrize("name", NAMES)


@all_architectures
def test_a_model_can_be_cut_between_all_groups_or_the_reason_is_given(name: str) -> None:
    _, groups, cuts, reasons = cut_everywhere(name)
    assert reasons == {count: reason for (other, count), reason in REFUSED.items() if other == name}
    assert cuts.keys() | reasons.keys() == set(range(1, len(groups)))


@all_architectures
@pytest.mark.parametrize(("rows", "length"), [(2, 9), (5, 9), (1, 9), (3, 6), (4, 13)])
def test_stored_activations_give_the_logits_of_a_live_run(name: str, rows: int, length: int) -> None:
    """Bit for bit, with blank pixels, for another number of samples, and for texts of another length."""
    model, groups, cuts, _ = cut_everywhere(name)
    inputs = batch(name, seed=7, rows=rows, length=length)
    live = logits(model, inputs)
    for count, cut in cuts.items():
        where = f"after {groups[count - 1].name}"
        recorded = cut.record(model, inputs)
        assert len(recorded) == len(cut.crossing) == 1
        assert torch.equal(logits_after(cut, model, recorded, inputs), live), where
        blank = cut.blank(inputs)
        if not is_text(name):
            assert (blank["pixel_values"].shape, int(blank["pixel_values"].count_nonzero())) == (
                inputs["pixel_values"].shape, 0,
            )  # fmt: skip
            assert blank["pixel_values"].untyped_storage().nbytes() == 4, "they take no memory"
            assert not torch.allclose(logits(model, blank), live, atol=1e-4), "otherwise the pixels have no effect"


@all_architectures
def test_crossing_tensors_are_described_by_the_sizes_of_the_batch(name: str) -> None:
    model, _, cuts, _ = cut_everywhere(name)
    inputs = batch(name, seed=7, rows=4, length=13)
    for cut in cuts.values():
        (crossing,), (recorded,) = cut.crossing, cut.record(model, inputs)
        sizes = {"samples": 4, "tokens": 13}
        assert tuple(recorded.shape) == tuple(sizes[size] if isinstance(size, str) else size for size in crossing.shape)
        assert (crossing.shape[0], crossing.dtype) == ("samples", recorded.dtype)
        assert not recorded.requires_grad


@pytest.mark.parametrize("name", TEXT_ARCHITECTURES)
def test_a_block_of_a_text_model_returns_a_vector_for_each_token(name: str) -> None:
    _, groups, cuts, _ = cut_everywhere(name)
    for count, cut in cuts.items():
        # A pooler returns one vector for each text; a decoder pools only after the head.
        pooled = groups[count - 1].name == "final" and name != "gpt2"
        assert [crossing.by_token for crossing in cut.crossing] == [not pooled]
    assert cuts[1].crossing == (Crossing(("samples", "tokens", 24), torch.float32),)


@all_architectures
def test_gradients_after_the_cut_are_those_of_a_live_run(name: str) -> None:
    """Of every parameter, also those of a live table."""
    model, groups, cuts, _ = cut_everywhere(name)
    inputs = batch(name, seed=7, rows=4)

    def gradients(names: set[str], given: Batch) -> dict[str, Tensor]:
        chosen = {key: value for key, value in model.named_parameters() if key in names}
        grads = torch.autograd.grad(model(**given).logits.square().sum(), list(chosen.values()), allow_unused=True)
        return {key: value for key, value in zip(chosen, grads, strict=True) if value is not None}

    for count, cut in cuts.items():
        names = {name for group in groups[count:] for name in group.parameters}
        live = gradients(names, inputs)
        recorded = cut.record(model, inputs)
        with cut.skipped(model):
            stored = gradients(names, with_stored(cut.blank(inputs), recorded))
        assert stored.keys() == live.keys() == names
        for key in names:
            # The gradients of a table of biases are summed in another order.
            torch.testing.assert_close(stored[key], live[key], rtol=1e-5, atol=1e-6, msg=f"{key} after {cut.module}")


@all_architectures
def test_skipped_groups_are_not_part_of_the_model(name: str) -> None:
    """They are neither saved nor trained; live modules are, and are the same as before."""
    model, groups, cuts, _ = cut_everywhere(name)
    whole, saved_whole = dict(model.named_parameters()), model.state_dict().keys()
    for count, cut in cuts.items():
        live = {module for module in LIVE.get(name, ()) if groups[count].is_block or module in NEVER_CALLED}
        skipped = {module for group in groups[:count] for module in group.modules} - live

        def outside(key: str, skipped: set[str] = skipped) -> bool:
            return not any(key.startswith(f"{module}.") for module in skipped)

        with cut.skipped(model) as modules:
            left, saved = dict(model.named_parameters()), model.state_dict().keys()
        assert modules.keys() <= skipped
        assert all(model.get_submodule(key) is module for key, module in modules.items())
        assert left.keys() == {key for key in whole if outside(key)}, f"after {groups[count - 1].name}"
        assert saved == {key for key in saved_whole if outside(key)}
        assert left.keys() < whole.keys()
        assert all(left[key] is whole[key] for key in left)


@all_architectures
@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_the_model_has_the_same_modules_again(name: str, fails: bool) -> None:
    """Also after an error, with their modes and without hooks."""
    model, _, cuts, _ = cut_everywhere(name)
    before, weights = list(model.named_modules()), state(model)
    modes = [module.training for _, module in before]
    for cut in cuts.values():
        with suppress(KeyError), cut.skipped(model):
            assert [id(module) for module in model.modules()] != [id(module) for _, module in before]
            model.train()
            if fails:
                raise KeyError
        model.eval()
        cut.record(model, batch(name, seed=1))
    after = list(model.named_modules())
    assert [key for key, _ in after] == [key for key, _ in before]
    assert all(one is other for (_, one), (_, other) in zip(after, before, strict=True))
    assert [module.training for _, module in after] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert list(weights) == list(model.state_dict())
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())


def test_a_parent_can_read_the_attributes_of_a_skipped_module() -> None:
    """A model casts its pixels to the dtype of a weight, for example."""
    model, _, cuts, _ = cut_everywhere("vit")
    original: Any = model.get_submodule("vit.embeddings")
    with cuts[1].skipped(model):
        stub: Any = model.get_submodule("vit.embeddings")
        assert stub is not original
        assert stub.patch_embeddings is original.patch_embeddings
        assert stub.patch_embeddings.projection.weight.dtype == torch.float32
        with pytest.raises(AttributeError, match="'ViTEmbeddings' object has no attribute 'nothing'"):
            _ = stub.nothing


def test_skipped_groups_are_moved_to_the_cpu_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Toy()
    cut = Cut(model, trace_groups(model, EXAMPLE), 2, EXAMPLE)
    names = {id(module): name for name, module in model.named_modules()}
    moved: list[tuple[str, str]] = []

    def to(module: nn.Module, device: torch.device) -> nn.Module:
        moved.append((names[id(module)], str(device)))
        return module

    monkeypatch.setattr(nn.Module, "to", to)
    with cut.skipped(model, torch.device("cuda", 0)):
        assert moved == [("stem", "cpu"), ("blocks.0", "cpu")]
        moved.clear()
    assert moved == [("stem", "cuda:0"), ("blocks.0", "cuda:0")]


def test_recording_stops_at_the_cut() -> None:
    """The groups after it are not run, and the model is not changed."""
    model, _, cuts, _ = cut_everywhere("vit")
    ran: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, module in model.named_children()
        for name, module in [(name, module), *(((f"{name}.{key}"), child) for key, child in module.named_modules())]
    ]
    model.train()
    recorded = cuts[2].record(model, batch("vit", seed=3))
    assert model.training
    model.eval()
    for handle in handles:
        handle.remove()
    assert "vit.layers.0" in ran
    assert not {"vit.layers.1", "vit.layernorm", "classifier"} & set(ran)
    assert torch.equal(recorded[0], cuts[2].record(model, batch("vit", seed=3))[0])


@pytest.mark.parametrize(
    ("variant", "count", "reason"),
    [
        ("skip", 2, "later layers depend on stem not only through blocks.0"),
        ("twice", 4, "blocks.2 runs more than once"),
        ("pixels", 2, "later layers need more than the output of blocks.0"),
        ("a tensor for each sample", 2, "the structure of the output of blocks.0 depends on the batch"),
        ("another size", 2, "the output of blocks.0 has tensors whose sizes are neither fixed nor those of the batch"),
        ("an object", 2, "the output of blocks.0 contains NoTensor, which cannot be stored"),
        ("a number of the batch", 2, "the output of blocks.0 contains int, which cannot be stored"),
        ("not by sample", 2, "the output of blocks.0 does not belong to single samples"),
        ("by the last sample", 2, "the output of blocks.0 does not belong to single samples"),
    ],
)
def test_the_reason_is_given_if_a_model_cannot_be_cut(variant: str, count: int, reason: str) -> None:
    model = Toy(variant)
    with pytest.raises(CannotCutError) as refused:
        Cut(model, trace_groups(model, EXAMPLE), count, EXAMPLE)
    assert str(refused.value) == reason


@pytest.mark.parametrize(
    ("variant", "crossing"),
    [
        *(
            (variant, [FLOATS])
            for variant in ("", "fixed numbers", "more than is needed", "acts in place", "the same for all samples")
        ),
        ("integers", [FLOATS, Crossing(("samples", 8), torch.int64)]),
    ],
)
def test_only_what_later_groups_need_is_recorded(variant: str, crossing: list[Crossing]) -> None:
    """Other parts of an output only have the same form and sizes."""
    model = Toy(variant)
    cut = Cut(model, trace_groups(model, EXAMPLE), 2, EXAMPLE)
    assert (cut.module, list(cut.crossing)) == ("blocks.0", crossing)
    inputs = {"pixel_values": torch.randn(5, 6, generator=torch.Generator().manual_seed(3))}
    assert torch.equal(logits_after(cut, model, cut.record(model, inputs), inputs), logits(model, inputs))


def test_a_text_that_is_longer_than_the_cut_was_made_for_is_refused() -> None:
    """Biases by distance are those of the longest text: T5 makes them in its first block for all."""
    model, groups, cuts, _ = cut_everywhere("t5")
    cut, inputs = cuts[groups.index(next(group for group in groups if group.is_block)) + 1], token_ids(length=LONGEST)
    longer = token_ids(length=LONGEST + 1)
    assert logits_after(cut, model, cut.record(model, inputs), inputs).shape == (len(inputs["input_ids"]), CLASSES)
    with pytest.raises(ValueError, match=r"batches up to \[1, 2, 13, 13\], found \[1, 2, 14, 14\]"):
        logits_after(cut, model, cut.record(model, longer), longer)


def test_a_text_may_be_as_long_as_the_model_can_take() -> None:
    """The test of the cut uses no longer texts."""
    model, _ = model_and_inputs("bert", max_position_embeddings=9)
    inputs = token_ids(length=9)
    cut = Cut(model, trace_groups(model, inputs), 2, inputs)
    assert torch.equal(logits_after(cut, model, cut.record(model, inputs), inputs), logits(model, inputs))


def test_rotary_positions_that_each_kind_of_attention_asks_for_are_computed_again() -> None:
    """ModernBERT runs them once for local and once for global attention; they have no weights."""
    model, inputs = model_of("modernbert"), token_ids(rows=3)
    groups = trace_groups(model, inputs)
    blocks = [count for count, group in enumerate(groups, start=1) if group.is_block]
    assert blocks == [2, 3]
    for count in blocks:
        cut = Cut(model, groups, count, inputs)
        other = token_ids(seed=5, rows=4, length=11)
        assert torch.equal(logits_after(cut, model, cut.record(model, other), other), logits(model, other))


def test_rotary_positions_that_depend_on_the_size_of_a_picture_are_computed_again(tmp_path: Path) -> None:
    """DINOv3 makes them of the pixels' shape, once for all blocks."""
    family = IMAGES["dinov3_vit"]
    checkpoint, inputs = Checkpoint(str(family.checkpoint(tmp_path))), family.inputs()
    model, groups = load_classifier(checkpoint, Classes(("a", "b")), inputs, seed=0, fresh_weights=False)
    model.eval()
    blocks = [count for count, group in enumerate(groups, start=1) if group.is_block]
    assert len(blocks) == 3
    for count in blocks:
        cut = Cut(model, groups, count, inputs)
        other = family.inputs(rows=5)
        recorded = cut.record(model, other)
        assert len(recorded) == 1
        assert torch.equal(logits_after(cut, model, recorded, cut.blank(other)), logits(model, other))
