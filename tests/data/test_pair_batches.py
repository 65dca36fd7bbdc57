"""From pairs to batches: both recipes' own inputs side by side, what is present, masks in place."""

import gc
import multiprocessing
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_transfer.data import inputs
from hf_transfer.data.images import decode
from hf_transfer.data.inputs import MASKED, Batch, Loaders, PixelPipeline, image_loaders, some_samples
from hf_transfer.data.pair_batches import PairBatches, pair_example, pair_inputs, pair_loaders
from hf_transfer.data.sources import Splits
from hf_transfer.data.splits import Split
from hf_transfer.data.tokens import TokenPipeline
from tests.data.conftest import PairSettings, Settings, encoded, mistake_saying, noise, raw_bytes
from tests.tiny_text_models import END, PAD, START, tiny_tokenizer

CPU = torch.device("cpu")
SIDE = 16
# Rows 2 and 5 have no image, 3 and 5 no text.
PRESENT_IMAGES, PRESENT_TEXTS = [1, 1, 0, 1, 1, 0, 1], [1, 1, 1, 0, 1, 0, 1]


@pytest.fixture(scope="module")
def pixels() -> PixelPipeline:
    processor: Any = ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return PixelPipeline(processor)


@pytest.fixture(scope="module")
def tokens() -> TokenPipeline:
    return TokenPipeline(tiny_tokenizer(), model_limit=None)


def pictures(count: int, seed: int = 0) -> list[bytes]:
    return [encoded(Image.fromarray(picture)) for picture in noise(count, 20, 24, 3, seed=seed)]


def split_of(
    images: Sequence[bytes | None], texts: Sequence[str | None], *, bad: dict[int, str] | None = None
) -> Split:
    """All rows of a table, of three classes in turn."""
    data = datasets.Dataset.from_dict(
        {"image": [image and raw_bytes(image) for image in images], "text": list(texts)},
        features=datasets.Features({"image": datasets.Image(decode=False), "text": datasets.Value("large_string")}),
    )
    return Split(data, np.arange(len(data)), np.arange(len(data)) % 3, bad=bad or {})


def some_pairs(*, seed: int = 0, bad: bool = True) -> Split:
    """Seven rows, of which row 5 has neither image nor text."""
    images = [image if given else None for image, given in zip(pictures(7, seed), PRESENT_IMAGES, strict=True)]
    texts = [" ".join(["word7"] * (n + 1)) if given else None for n, given in enumerate(PRESENT_TEXTS)]
    return split_of(images, texts, bad={5: "neither an image nor a text"} if bad else None)


def splits_of(train: Split) -> Splits:
    held_out = split_of(pictures(4, 5), ["word9 word8", None, "word9", "word6 word6 word6"])
    return Splits(train, held_out, held_out, "pairs", ["a", "b", "c"], {}, [])


Make = Any


@pytest.fixture
def make(pair_settings: PairSettings, pixels: PixelPipeline, tokens: TokenPipeline) -> Make:
    """`make(training split, **settings)` -> loaders."""

    def loaders(train: Split, *, frozen_prefix: bool = False, length: int | None = None, **chosen: Any) -> Loaders:
        chosen = {"per_device_train_batch_size": 3, "per_device_eval_batch_size": 3} | chosen
        pipeline = TokenPipeline(tiny_tokenizer(), model_limit=None, max_seq_length=length) if length else tokens
        config = pair_settings(**chosen)
        return pair_loaders(
            splits_of(train), pixels, pipeline, config, Accelerator(cpu=True), frozen_prefix=frozen_prefix
        )

    return loaders


def one_pass(loaders: Loaders, name: str, epoch: int | None) -> list[tuple[Batch, Tensor, Tensor]]:
    if epoch is not None:
        loaders.of(name).set_epoch(epoch)
    return [loaders.to_inputs(batch, CPU, name, epoch) for batch in loaders.of(name)]


def by_row(loaders: Loaders, name: str, epoch: int | None) -> dict[int, dict[str, Any]]:
    """Each row's inputs, without padding, and its label."""
    found = {}
    for inputs_, labels, rows in one_pass(loaders, name, epoch):
        for place, row in enumerate(rows.tolist()):
            length = int(inputs_["attention_mask"][place].sum())
            found[row] = {"label": labels[place].item()} | {
                key: value[place][:length] if value.ndim == 2 else value[place] for key, value in inputs_.items()
            }
    return found


def test_a_batch_holds_pixels_tokens_and_what_is_present(make: Make) -> None:
    """By name, shape and type."""
    for batch, labels, rows in one_pass(make(some_pairs()), "train", 0):
        count = len(rows)
        assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
            "pixel_values": ((count, 3, SIDE, SIDE), torch.float32),
            "input_ids": ((count, batch["input_ids"].shape[1]), torch.int64),
            "token_type_ids": ((count, batch["input_ids"].shape[1]), torch.int64),
            "attention_mask": ((count, batch["input_ids"].shape[1]), torch.int64),
            "image_present": ((count,), torch.bool),
            "text_present": ((count,), torch.bool),
        }
        assert labels.shape == rows.shape == (count,)


def test_what_is_missing_is_zero_or_an_empty_text_and_known_to_be_missing(make: Make) -> None:
    """Zero is what the model takes, and not black, which it would take for -1; the order of rows is any."""
    for epoch in (None, 0):
        rows = by_row(make(some_pairs(), augmentation="none"), "train", epoch)
        assert sorted(rows) == list(range(7))
        for row in (0, 1, 2, 3, 4, 6):
            sample = rows[row]
            assert sample["label"] == row % 3
            assert (sample["image_present"].item(), sample["text_present"].item()) == (
                bool(PRESENT_IMAGES[row]), bool(PRESENT_TEXTS[row]),
            )  # fmt: skip
            assert sample["pixel_values"].any() == bool(PRESENT_IMAGES[row])
            words = row + 1 if PRESENT_TEXTS[row] else 0
            assert len(sample["input_ids"]) == 2 + words
            assert [sample["input_ids"][0], sample["input_ids"][-1]] == [START, END]


def test_a_row_with_neither_is_masked_in_place_and_counts_as_one_with_a_text(make: Make) -> None:
    """A model that finds neither might say what is no number, and spoil the whole batch."""
    row = by_row(make(some_pairs()), "train", 0)[5]
    assert row["label"] == MASKED
    assert (row["image_present"].item(), row["text_present"].item()) == (False, True)
    assert not row["pixel_values"].any()


def test_a_row_whose_image_is_bad_is_masked_and_has_no_image(make: Make) -> None:
    """Its pixels are as empty as where there is none."""
    split = split_of([*pictures(3), b"no image"], ["word7"] * 4, bad={3: "8 bytes that are no image"})
    row = by_row(make(split), "train", 0)[3]
    assert (row["label"], row["image_present"].item(), row["text_present"].item()) == (MASKED, False, True)
    assert not row["pixel_values"].any()


@pytest.mark.parametrize("kind", ["none", "standard"])
@pytest.mark.parametrize("frozen", [False, True])
def test_pixels_are_those_of_the_image_recipe_in_every_epoch(
    kind: str, frozen: bool, make: Make, settings: Settings, pixels: PixelPipeline
) -> None:
    """Augmented by seed, view and row alone, whatever texts stand beside them."""
    ours = make(some_pairs(), augmentation=kind, frozen_prefix=frozen, seed=3)
    config = settings(augmentation=kind, seed=3, dataset_name="sample:glyph-names", per_device_train_batch_size=7)
    images = split_of(pictures(7), [""] * 7)
    theirs = image_loaders(splits_of(images), pixels, config, Accelerator(cpu=True), frozen_prefix=frozen)
    for epoch in (0, 1, 4):
        batch, _ = some_samples(theirs, "train", range(7), epoch, CPU)
        rows = by_row(ours, "train", epoch)
        for row in (0, 1, 3, 4, 6):
            assert torch.equal(rows[row]["pixel_values"], batch["pixel_values"][row])
    assert (ours.views, ours.cycle) == (theirs.views, theirs.cycle)


def test_tokens_are_those_of_the_tokenizer(make: Make, tokens: TokenPipeline) -> None:
    rows = by_row(make(some_pairs()), "train", 2)
    for row, (text,) in enumerate(some_pairs().texts()):
        assert rows[row]["input_ids"].tolist() == tokens.tokenizer(text or "")["input_ids"]


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_the_order_is_a_pure_function_of_seed_and_epoch(strategy: str, make: Make) -> None:
    """Loaders that jump to an epoch see what those see that went through all."""
    split = split_of(pictures(20), [" ".join(["word7"] * (n % 9 + 1)) for n in range(20)])

    def orders(*epochs: int, seed: int = 0) -> list[list[int]]:
        loaders = make(split, train_sampling_strategy=strategy, seed=seed)
        return [[row for *_, rows in one_pass(loaders, "train", epoch) for row in rows.tolist()] for epoch in epochs]

    through = orders(0, 1, 2)
    assert through == [orders(epoch)[0] for epoch in (0, 1, 2)]
    assert all(sorted(order) == list(range(20)) for order in through)
    assert len({tuple(order) for order in [*through, *orders(0, seed=1)]}) == 4


def test_evaluation_sees_every_row_once_the_longest_text_first_and_never_augmented(make: Make) -> None:
    loaders = make(some_pairs(), augmentation="standard")
    lengths = [int(n) for batch, *_ in one_pass(loaders, "test", None) for n in batch["attention_mask"].sum(1)]
    assert lengths == [5, 4, 3, 2]
    plain = by_row(make(some_pairs(), augmentation="none"), "test", None)
    for row, sample in by_row(loaders, "test", None).items():
        assert torch.equal(sample["pixel_values"], plain[row]["pixel_values"])


def test_texts_that_are_cut_are_noted(make: Make) -> None:
    loaders = make(some_pairs(), length=6)
    assert loaders.notes == ("Cut at 6 tokens: 2 of 7 in train; 4 tokens (6.7%) were lost.",)
    assert max(batch["input_ids"].shape[1] for batch, *_ in one_pass(loaders, "train", 0)) == 6


def test_blank_loaders_decode_nothing_and_keep_all_else(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens, masks, what is present, labels and rows are needed behind stored layers, too."""
    loaders = make(some_pairs())
    whole = one_pass(loaders, "train", 1)
    monkeypatch.setattr(inputs, "decode", lambda raw: pytest.fail("an image was decoded"))
    blank = one_pass(make(some_pairs()).blank(), "train", 1)
    assert len(blank) == len(whole) == 3
    for (ours, labels, rows), (theirs, their_labels, their_rows) in zip(blank, whole, strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["pixel_values"].shape == theirs["pixel_values"].shape
        assert not ours["pixel_values"].any()
        for name in ours.keys() - {"pixel_values"}:
            assert torch.equal(ours[name], theirs[name]), name
        assert torch.equal(labels, their_labels)
        assert torch.equal(rows, their_rows)


def changed(split: Split, **columns: Any) -> Split:
    """The same rows with other values in the first of them."""
    features = split.dataset.features
    values = {name: split.dataset[name][:] for name in features}
    for name, value in columns.items():
        values[name] = [value, *values[name][1:]]
    return Split(datasets.Dataset.from_dict(values, features=features), split.rows, split.labels, split.bad)


def test_the_fingerprint_changes_with_image_text_tokens_label_and_what_is_bad(make: Make) -> None:
    """And with nothing else: the same data twice give the same."""
    split = some_pairs()
    relabelled = Split(split.dataset, split.rows, (split.labels + 1) % 3, split.bad)
    others = [
        changed(split, image=raw_bytes(pictures(1, 8)[0])), changed(split, image=None), changed(split, text="word8"),
        changed(split, text=None), relabelled, some_pairs(bad=False),
    ]  # fmt: skip
    prints = [make(one).fingerprint("train", None) for one in (split, *others)]
    prints.append(make(split, length=6).fingerprint("train", None))
    assert len(set(prints)) == len(prints)
    assert make(some_pairs()).fingerprint("train", None) == prints[0]
    epochs = [make(split, frozen_prefix=True).fingerprint("train", epoch) for epoch in (None, 0, 1, 4)]
    assert len(set(epochs)) == 3
    assert epochs[1] == epochs[3]


def test_no_text_and_an_empty_one_are_told_apart_by_the_fingerprint(make: Make) -> None:
    """Both have the same tokens."""
    texts = [make(changed(some_pairs(), text=text)).fingerprint("train", None) for text in ("", None)]
    assert texts[0] != texts[1]


@pytest.mark.parametrize("skip", [False, True])
def test_an_image_that_turns_out_to_be_bad_stops_the_run_or_is_masked(skip: bool, make: Make) -> None:
    """Beyond --verify_samples only headers were read; a missing image is no such case."""
    whole = pictures(1)[0]
    split = split_of([whole[: len(whole) // 2], None, *([whole] * 99)], ["word7"] * 101)
    loaders = make(split, on_bad_sample="skip" if skip else "error", per_device_train_batch_size=101)
    if skip:
        rows = by_row(loaders, "train", 0)
        assert [row for row, sample in rows.items() if sample["label"] == MASKED] == [0]
        assert not rows[0]["image_present"]
        return
    with mistake_saying(expected="images that can be read", found="row 0: damaged", do="--on_bad_sample skip"):
        one_pass(loaders, "train", 0)


def test_workers_change_nothing_and_can_be_sent_what_they_need(make: Make) -> None:
    split = split_of(pictures(7), ["word7 word8"] * 7)
    gc.collect()
    gc.disable()
    try:
        alone, helped = (one_pass(make(split, dataloader_num_workers=count), "train", 1) for count in (0, 1))
    finally:
        gc.enable()
    for (ours, labels, rows), (theirs, their_labels, their_rows) in zip(helped, alone, strict=True):
        assert torch.equal(labels, their_labels)
        assert torch.equal(rows, their_rows)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    # They ignore signals, and would keep the process from ending: they must be gone with their loader.
    assert multiprocessing.active_children() == []
    loader = make(split).train
    assert len(ForkingPickler.dumps((loader.dataset, loader.collate_fn))) > 0


def test_the_longest_samples_are_known_by_their_tokens(make: Make) -> None:
    """Whoever looks for the largest batch that fits needs them."""
    assert make(some_pairs()).train.dataset.lengths.tolist() == [3, 4, 5, 2, 7, 2, 9]


def test_inputs_of_pairs_that_belong_to_no_split_are_those_of_the_loaders(
    make: Make, pixels: PixelPipeline, tokens: TokenPipeline
) -> None:
    """Whichever of the two is missing."""
    rows = by_row(make(some_pairs(), augmentation="none"), "train", None)
    split = some_pairs()
    chosen = [0, 2, 3]
    given = [
        (decode(split.raw(row)) if PRESENT_IMAGES[row] else None, text)
        for row, (text,) in enumerate(split.texts())
        if row in chosen
    ]
    found = pair_inputs(pixels, tokens, given)
    for place, row in enumerate(chosen):
        length = int(found["attention_mask"][place].sum())
        for name, value in found.items():
            expected = rows[row][name]
            assert torch.equal(value[place][:length] if value.ndim == 2 else value[place], expected), name
    blank = pair_inputs(pixels, tokens, [(Image.new("RGB", (9, 9)), " \n")])
    assert (blank["image_present"].item(), blank["text_present"].item()) == (True, False)


def test_a_pair_of_nothing_is_refused(pixels: PixelPipeline, tokens: TokenPipeline) -> None:
    with mistake_saying(expected="an image, a text, or both", found="neither, in pair 2", do="give at least one"):
        pair_inputs(pixels, tokens, [(None, "word7"), (None, "  ")])


def test_the_example_is_of_two_whole_pairs(pixels: PixelPipeline, tokens: TokenPipeline, make: Make) -> None:
    example = pair_example(pixels, tokens)
    [(batch, *_), *_] = one_pass(make(some_pairs()), "train", 0)
    assert example.keys() == batch.keys()
    assert all(len(value) == 2 for value in example.values())
    assert example["image_present"].all()
    assert example["text_present"].all()
    assert example["input_ids"][1, -1] == PAD


def test_batches_are_turned_into_inputs_by_something_that_can_be_looked_at(make: Make, tmp_path: Path) -> None:
    """Mirroring would make another letter of some."""
    to_inputs = make(some_pairs(), dataset_name="sample:glyph-names").to_inputs
    assert isinstance(to_inputs, PairBatches)
    assert not to_inputs.images.augmentation.flip
    assert make(some_pairs(), dataset_name="mine").to_inputs.images.augmentation.flip
