"""A cut model against the whole one: what was recorded in front of the cut gives the logits of a live run."""

from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AlbertConfig, AutoModelForSequenceClassification, CLIPConfig, CLIPForImageClassification

from hf_transfer.models.cutting import CannotCutError, Crossing, Cut
from hf_transfer.models.groups import Group, trace_groups
from tests.tiny_models import ALL, CLASSES, logits, perturb, pixels, state
from tests.tiny_text_models import PAD, TEXT_ARCHITECTURES, VOCABULARY, token_ids
from tests.training.toy_task import tiny

Batch = dict[str, Tensor]
SIZES: dict[str, Any] = {
    "num_labels": CLASSES, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32, "hidden_size": 24,
}  # fmt: skip
EVERY = [*ALL, *TEXT_ARCHITECTURES, "clip", "albert"]
FLOATS = Crossing(("samples", 8), torch.float32)
# The places that cannot be had, by the number of groups in front of them.
REFUSED = {
    # One dropout before and one behind the dense layer of its head: they are the same module.
    ("roberta", 5): "classifier.dropout runs more than once",
    # Its last norm sees the class token alone, and the head the mean of all patches.
    ("clip", 5): "vision_model.embeddings, vision_model.embeddings.patch_embedding, "
    "vision_model.encoder.layers.0.layer_norm1 reach past vision_model.post_layernorm",
}
# What blocks use although no data flows through it: up to the last of them it stays where it is.
LIVE = {
    "beit": ("beit.shared_position_bias",),
    "deberta": ("deberta.encoder.LayerNorm", "deberta.encoder.rel_embeddings"),
}
# Its weight is read off, and nothing has to stand in for what it gives.
NEVER_CALLED = ("deberta.encoder.rel_embeddings",)
everywhere = pytest.mark.parametrize("name", EVERY)


def _clip() -> nn.Module:
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    words = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}
    vision = SIZES | {"image_size": 16, "patch_size": 8}
    parts: dict[str, Any] = {"vision_config": vision, "text_config": text | words, "num_labels": CLASSES}
    return CLIPForImageClassification(CLIPConfig(**parts))


def _albert() -> nn.Module:
    words: dict[str, Any] = {"vocab_size": VOCABULARY, "embedding_size": 16, "pad_token_id": PAD}
    model: nn.Module = AutoModelForSequenceClassification.from_config(AlbertConfig(**SIZES, **words))
    return model


@cache
def known(name: str) -> tuple[nn.Module, list[Group], dict[int, Cut], dict[int, str]]:
    """A model, its groups, where it can be cut, and why it cannot elsewhere; shared, since every test restores it."""
    if name in ("clip", "albert"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = _clip() if name == "clip" else _albert()
        perturb(model, 1)
        model.eval()
        groups = trace_groups(model, batch(name, seed=0))
    else:
        model, groups, _ = tiny(name)
    cuts: dict[int, Cut] = {}
    reasons: dict[int, str] = {}
    for count in range(1, len(groups)):
        try:
            cuts[count] = Cut(model, groups, count, batch(name, seed=0))
        except CannotCutError as reason:
            reasons[count] = str(reason)
    assert cuts, reasons
    return model, groups, cuts, reasons


def is_text(name: str) -> bool:
    return name in TEXT_ARCHITECTURES or name == "albert"


def batch(name: str, *, seed: int, rows: int = 2, length: int = 9) -> Batch:
    if is_text(name):
        return token_ids(seed=seed, rows=rows, length=length)
    return pixels("vit" if name == "clip" else name, seed=seed, rows=rows)


def behind(cut: Cut, model: nn.Module, recorded: Sequence[Tensor], inputs: Batch) -> Tensor:
    """The logits from what was recorded, although the inputs are blank."""
    with cut.skipped(model) as stand:
        stand.put(recorded, inputs)
        return logits(model, cut.blank(inputs))


@everywhere
def test_a_model_can_be_cut_between_all_groups_but_where_it_is_said_why_not(name: str) -> None:
    _, groups, cuts, reasons = known(name)
    assert reasons == {count: said for (other, count), said in REFUSED.items() if other == name}
    assert cuts.keys() | reasons.keys() == set(range(1, len(groups)))


@everywhere
@pytest.mark.parametrize(("rows", "length"), [(2, 9), (5, 9), (1, 9), (3, 6), (4, 13)])
def test_behind_the_cut_the_logits_are_those_of_a_live_run(name: str, rows: int, length: int) -> None:
    """To the bit, with blank pixels, for another number of samples, and for texts of another length."""
    model, groups, cuts, _ = known(name)
    inputs = batch(name, seed=7, rows=rows, length=length)
    live = logits(model, inputs)
    for count, cut in cuts.items():
        where = f"behind {groups[count - 1].name}"
        recorded = cut.record(model, inputs)
        assert len(recorded) == len(cut.crossing) == 1
        assert torch.equal(behind(cut, model, recorded, inputs), live), where
        blank = cut.blank(inputs)
        if not is_text(name):
            assert (blank["pixel_values"].shape, int(blank["pixel_values"].count_nonzero())) == (
                inputs["pixel_values"].shape, 0,
            )  # fmt: skip
            assert blank["pixel_values"].untyped_storage().nbytes() == 4, "they take no room"
            assert not torch.allclose(logits(model, blank), live, atol=1e-4), "or the pixels would not matter"


@everywhere
def test_what_crosses_is_described_by_the_sizes_of_the_batch(name: str) -> None:
    model, _, cuts, _ = known(name)
    inputs = batch(name, seed=7, rows=4, length=13)
    for cut in cuts.values():
        (crossing,), (recorded,) = cut.crossing, cut.record(model, inputs)
        sizes = {"samples": 4, "tokens": 13}
        assert tuple(recorded.shape) == tuple(sizes[size] if isinstance(size, str) else size for size in crossing.shape)
        assert (crossing.shape[0], crossing.dtype) == ("samples", recorded.dtype)
        assert not recorded.requires_grad


@pytest.mark.parametrize("name", TEXT_ARCHITECTURES)
def test_a_block_of_a_text_model_gives_a_vector_for_each_token(name: str) -> None:
    _, groups, cuts, _ = known(name)
    for count, cut in cuts.items():
        # What is pooled is one for each text; a decoder pools last of all.
        pooled = groups[count - 1].name == "final" and name != "gpt2"
        assert [crossing.by_token for crossing in cut.crossing] == [not pooled]
    assert cuts[1].crossing == (Crossing(("samples", "tokens", 24), torch.float32),)


@everywhere
def test_gradients_behind_the_cut_are_those_of_a_live_run(name: str) -> None:
    """Of every parameter, those of a table that stays live too."""
    model, groups, cuts, _ = known(name)
    inputs = batch(name, seed=7, rows=4)

    def gradients(names: set[str], given: Batch) -> dict[str, Tensor]:
        chosen = {key: value for key, value in model.named_parameters() if key in names}
        found = torch.autograd.grad(model(**given).logits.square().sum(), list(chosen.values()), allow_unused=True)
        return {key: value for key, value in zip(chosen, found, strict=True) if value is not None}

    for count, cut in cuts.items():
        names = {name for group in groups[count:] for name in group.parameters}
        live = gradients(names, inputs)
        recorded = cut.record(model, inputs)
        with cut.skipped(model) as stand:
            stand.put(recorded, inputs)
            stored = gradients(names, cut.blank(inputs))
        assert stored.keys() == live.keys() == names
        for key in names:
            # A table of biases adds up its gradients in an order that is not ours.
            torch.testing.assert_close(stored[key], live[key], rtol=1e-5, atol=1e-6, msg=f"{key} behind {cut.module}")


@everywhere
def test_while_they_are_skipped_the_groups_are_no_part_of_the_model(name: str) -> None:
    """They are neither saved nor learned; what stays live is, and is the same as before."""
    model, groups, cuts, _ = known(name)
    whole, saved_whole = dict(model.named_parameters()), model.state_dict().keys()
    for count, cut in cuts.items():
        live = {module for module in LIVE.get(name, ()) if groups[count].is_block or module in NEVER_CALLED}
        gone = {module for group in groups[:count] for module in group.modules} - live

        def outside(key: str, gone: set[str] = gone) -> bool:
            return not any(key.startswith(f"{module}.") for module in gone)

        with cut.skipped(model):
            left, saved = dict(model.named_parameters()), model.state_dict().keys()
        assert left.keys() == {key for key in whole if outside(key)}, f"behind {groups[count - 1].name}"
        assert saved == {key for key in saved_whole if outside(key)}
        assert left.keys() < whole.keys()
        assert all(left[key] is whole[key] for key in left)


@everywhere
@pytest.mark.parametrize("fails", [False, True])
def test_afterwards_the_very_same_modules_are_back(name: str, fails: bool) -> None:
    """Also after an error inside, with their modes and without hooks."""
    model, _, cuts, _ = known(name)
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


def test_a_parent_reads_the_attributes_of_the_module_that_is_skipped() -> None:
    """The dtype of a weight, say, by which a model casts its pixels."""
    model, _, cuts, _ = known("vit")
    original: Any = model.get_submodule("vit.embeddings")
    with cuts[1].skipped(model):
        stub: Any = model.get_submodule("vit.embeddings")
        assert stub is not original
        assert stub.patch_embeddings is original.patch_embeddings
        assert stub.patch_embeddings.projection.weight.dtype == torch.float32
        with pytest.raises(AttributeError, match="'ViTEmbeddings' object has no attribute 'nothing'"):
            _ = stub.nothing


def test_the_skipped_groups_leave_the_device_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
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
    """The groups behind it are not run, and the model is as it was."""
    model, _, cuts, _ = known("vit")
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


class Notes:
    """Something that is no tensor."""


class Block(nn.Module):
    """A layer whose output has another form, on demand."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.form = form

    def forward(self, hidden: Tensor) -> Any:
        if self.form == "acts in place":
            return self.layer(hidden.relu_())
        hidden = torch.tanh(self.layer(hidden))
        forms: dict[str, Any] = {
            "a tensor for each sample": hidden.unbind(0),
            "another size": (hidden, hidden.repeat(2, 1)),
            "an object": (hidden, Notes()),
            "a number of the batch": (hidden, len(hidden)),
            "fixed numbers": (hidden, 7, None, "word"),
            "whole numbers": (hidden, (hidden > 0).long()),
            "not by sample": (hidden, hidden.sum(0)),
            "more than is needed": {"unused": hidden.relu(), "hidden": hidden, "flag": True},
        }
        return forms.get(self.form, hidden)


class Toy(nn.Module):
    """A stem and three blocks; `twist` says what is unusual about them."""

    def __init__(self, twist: str = "") -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Linear(6, 8)
            self.blocks = nn.ModuleList(Block(twist) for _ in range(3))
            self.classifier = nn.Linear(8, CLASSES)
        self.twist = twist

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        early = hidden = self.stem(pixel_values)
        for block in self.blocks:
            hidden = self._plain(block(hidden))
        if self.twist == "skip":
            hidden = hidden + early
        if self.twist == "pixels":
            hidden = hidden + pixel_values.sum(1, keepdim=True)
        if self.twist == "twice":
            hidden = self.blocks[2](hidden)
        return SimpleNamespace(logits=self.classifier(hidden))

    def _plain(self, output: Any) -> Any:
        """What goes on to the next block."""
        if self.twist == "a tensor for each sample":
            return torch.stack(output)
        if self.twist == "whole numbers":
            return output[0] * output[1]
        if self.twist == "not by sample":
            return output[0] + output[1]
        if self.twist == "more than is needed":
            # Its shape is looked at, its values are not.
            return output["hidden"] + torch.zeros(output["unused"].shape)
        return output[0] if isinstance(output, tuple) else output


EXAMPLE = {"pixel_values": torch.linspace(-1, 1, 12).reshape(2, 6)}


@pytest.mark.parametrize(
    ("twist", "count", "reason"),
    [
        ("skip", 2, "stem reach past blocks.0"),
        ("twice", 4, "blocks.2 runs more than once"),
        ("pixels", 2, "what comes out of blocks.0 is not all that later layers need"),
        ("a tensor for each sample", 2, "the form of what blocks.0 gives depends on the batch"),
        ("another size", 2, "blocks.0 gives tensors whose sizes are neither those of the batch nor fixed"),
        ("an object", 2, "blocks.0 gives a Notes, which cannot be stored"),
        ("a number of the batch", 2, "blocks.0 gives a int, which cannot be stored"),
        ("not by sample", 2, "blocks.0 gives something that does not belong to single samples"),
    ],
)
def test_where_a_model_cannot_be_cut_the_reason_is_said(twist: str, count: int, reason: str) -> None:
    model = Toy(twist)
    with pytest.raises(CannotCutError) as refused:
        Cut(model, trace_groups(model, EXAMPLE), count, EXAMPLE)
    assert str(refused.value) == reason


@pytest.mark.parametrize(
    ("twist", "crossing"),
    [
        *((twist, [FLOATS]) for twist in ("", "fixed numbers", "more than is needed", "acts in place")),
        ("whole numbers", [FLOATS, Crossing(("samples", 8), torch.int64)]),
    ],
)
def test_only_what_later_groups_need_is_recorded(twist: str, crossing: list[Crossing]) -> None:
    """The rest of an output has its form and its sizes."""
    model = Toy(twist)
    cut = Cut(model, trace_groups(model, EXAMPLE), 2, EXAMPLE)
    assert (cut.module, list(cut.crossing)) == ("blocks.0", crossing)
    inputs = {"pixel_values": torch.randn(5, 6, generator=torch.Generator().manual_seed(3))}
    assert torch.equal(behind(cut, model, cut.record(model, inputs), inputs), logits(model, inputs))


def test_a_text_may_be_as_long_as_the_model_can_take() -> None:
    """Nothing longer is tried."""
    model, groups, _ = tiny("bert", max_position_embeddings=9)
    inputs = token_ids(length=9)
    cut = Cut(model, groups, 2, inputs)
    assert torch.equal(behind(cut, model, cut.record(model, inputs), inputs), logits(model, inputs))
