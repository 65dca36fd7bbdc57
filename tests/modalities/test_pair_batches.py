"""From pairs to batches: the inputs of both recipes together, what is present, and masks."""

import dataclasses
import multiprocessing
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_transfer.data.batches import LabelledInputs, Loaders
from hf_transfer.data.pictures import decode
from hf_transfer.data.rows import encoded_image, texts_of
from hf_transfer.data.splits import Split, Splits
from hf_transfer.modalities.image import ImageModality
from hf_transfer.modalities.image_batches import ImageInputs
from hf_transfer.modalities.pair import PairModality
from hf_transfer.modalities.pair_batches import PairInputs, PairPreprocessing
from hf_transfer.modalities.pixels import PixelPreprocessing
from hf_transfer.modalities.tokens import TokenPreprocessing
from hf_transfer.targets.classes import Classes
from tests.data.conftest import PairSettings, Settings, encoded, noise, raw_bytes, user_error_with
from tests.tiny_text_models import END, PAD, START, tiny_tokenizer

CPU = torch.device("cpu")
SIDE = 16
# Rows 2 and 5 have no image, 3 and 5 no text.
PRESENT_IMAGES, PRESENT_TEXTS = [1, 1, 0, 1, 1, 0, 1], [1, 1, 1, 0, 1, 0, 1]


@pytest.fixture(scope="module")
def pixels() -> PixelPreprocessing:
    processor: Any = ViTImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return PixelPreprocessing(processor)


@pytest.fixture(scope="module")
def tokens() -> TokenPreprocessing:
    return TokenPreprocessing(tiny_tokenizer(), model_limit=None)


def pictures(count: int, seed: int = 0) -> list[bytes]:
    return [encoded(Image.fromarray(picture)) for picture in noise(count, 20, 24, 3, seed=seed)]


def split_of(
    images: Sequence[bytes | None], texts: Sequence[str | None], *, unreadable: dict[int, str] | None = None
) -> Split:
    """All rows of a table, of three classes in turn."""
    data = datasets.Dataset.from_dict(
        {"image": [image and raw_bytes(image) for image in images], "text": list(texts)},
        features=datasets.Features({"image": datasets.Image(decode=False), "text": datasets.Value("large_string")}),
    )
    return Split(data, np.arange(len(data)), np.arange(len(data)) % 3, unreadable=unreadable or {})


def some_pairs(*, seed: int = 0, mask: bool = True) -> Split:
    """Seven rows, of which row 5 has neither image nor text."""
    images = [image if given else None for image, given in zip(pictures(7, seed), PRESENT_IMAGES, strict=True)]
    texts = [" ".join(["word7"] * (n + 1)) if given else None for n, given in enumerate(PRESENT_TEXTS)]
    return split_of(images, texts, unreadable={5: "neither an image nor a text"} if mask else None)


def splits_of(train: Split) -> Splits:
    held_out = split_of(pictures(4, 5), ["word9 word8", None, "word9", "word6 word6 word6"])
    return Splits(train, held_out, held_out, Classes(("a", "b", "c")), {}, "pairs", {}, [])


Make = Any


@pytest.fixture
def make(pair_settings: PairSettings, pixels: PixelPreprocessing, tokens: TokenPreprocessing) -> Make:
    """`make(training split, **settings)` -> loaders."""

    def loaders(train: Split, *, frozen_prefix: bool = False, length: int | None = None, **chosen: Any) -> Loaders:
        chosen = {"per_device_train_batch_size": 3, "per_device_eval_batch_size": 3} | chosen
        texts = TokenPreprocessing(tiny_tokenizer(), model_limit=None, max_seq_length=length) if length else tokens
        return PairModality().loaders(
            splits_of(train), PairPreprocessing(pixels, texts), pair_settings(**chosen), Accelerator(cpu=True),
            frozen_prefix=frozen_prefix,
        )  # fmt: skip

    return loaders


def one_pass(loaders: Loaders, name: str, epoch: int | None) -> list[LabelledInputs]:
    if epoch is not None:
        loaders.of(name).set_epoch(epoch)
    return [loaders.to_inputs(batch, CPU, name, epoch) for batch in loaders.of(name)]


def by_row(loaders: Loaders, name: str, epoch: int | None) -> dict[int, dict[str, Any]]:
    """Each row's inputs, without padding, its target and whether it counts."""
    samples = {}
    for step in one_pass(loaders, name, epoch):
        for place, row in enumerate(step.rows.tolist()):
            length = int(step.inputs["attention_mask"][place].sum())
            samples[row] = {"target": step.targets[place].item(), "counted": step.counted[place].item()} | {
                key: value[place][:length] if value.ndim == 2 else value[place] for key, value in step.inputs.items()
            }
    return samples


def same_labels(first: LabelledInputs, second: LabelledInputs) -> bool:
    """Whether two batches have equal targets, masks and row numbers."""
    return all(torch.equal(one, other) for one, other in zip(first[1:], second[1:], strict=True))


def test_a_batch_holds_pixels_tokens_and_what_is_present(make: Make) -> None:
    """By name, shape and type."""
    for batch, targets, counted, rows in one_pass(make(some_pairs()), "train", 0):
        count = len(rows)
        assert {name: (tuple(value.shape), value.dtype) for name, value in batch.items()} == {
            "pixel_values": ((count, 3, SIDE, SIDE), torch.float32),
            "input_ids": ((count, batch["input_ids"].shape[1]), torch.int64),
            "token_type_ids": ((count, batch["input_ids"].shape[1]), torch.int64),
            "attention_mask": ((count, batch["input_ids"].shape[1]), torch.int64),
            "image_present": ((count,), torch.bool),
            "text_present": ((count,), torch.bool),
        }
        assert targets.shape == counted.shape == rows.shape == (count,)


def test_what_is_missing_is_zero_or_an_empty_text_and_known_to_be_missing(make: Make) -> None:
    """Zero is what the model takes, and not black, which it would take for -1; the order of rows is any."""
    for epoch in (None, 0):
        rows = by_row(make(some_pairs(), augmentation="none"), "train", epoch)
        assert sorted(rows) == list(range(7))
        for row in (0, 1, 2, 3, 4, 6):
            sample = rows[row]
            assert sample["target"] == row % 3
            assert (sample["image_present"].item(), sample["text_present"].item()) == (
                bool(PRESENT_IMAGES[row]), bool(PRESENT_TEXTS[row]),
            )  # fmt: skip
            assert sample["pixel_values"].any() == bool(PRESENT_IMAGES[row])
            words = row + 1 if PRESENT_TEXTS[row] else 0
            assert len(sample["input_ids"]) == 2 + words
            assert [sample["input_ids"][0], sample["input_ids"][-1]] == [START, END]
            assert sample["counted"]


def test_a_row_with_neither_is_masked_in_its_place_and_passes_as_one_with_a_text(make: Make) -> None:
    """The output for a sample with neither might be NaN, and spoil the loss of the whole batch."""
    row = by_row(make(some_pairs()), "train", 0)[5]
    assert (row["target"], row["counted"]) == (2, False)
    assert (row["image_present"].item(), row["text_present"].item()) == (False, True)
    assert not row["pixel_values"].any()


def test_a_row_whose_image_is_unreadable_is_masked_and_has_no_image(make: Make) -> None:
    """Its pixels are as empty as where there is none, and its target is what it was."""
    split = split_of([b"no image", *pictures(1)] * 2, ["word7"] * 4, unreadable=dict.fromkeys((0, 2), "no image"))
    row = by_row(make(split), "train", 0)[2]
    assert (row["target"], row["counted"]) == (2, False)
    assert (row["image_present"].item(), row["text_present"].item()) == (False, True)
    assert not row["pixel_values"].any()


@pytest.mark.parametrize("kind", ["none", "standard"])
@pytest.mark.parametrize("frozen", [False, True])
def test_pixels_are_those_of_the_image_recipe_in_every_epoch(
    kind: str, frozen: bool, make: Make, settings: Settings, pixels: PixelPreprocessing
) -> None:
    """Augmentation depends on seed, view and row alone, and not on the texts."""
    ours = make(some_pairs(), augmentation=kind, frozen_prefix=frozen, seed=3)
    config = settings(augmentation=kind, seed=3, dataset_name="sample:glyph-names", per_device_train_batch_size=7)
    images = split_of(pictures(7), [""] * 7)
    theirs = ImageModality().loaders(splits_of(images), pixels, config, Accelerator(cpu=True), frozen_prefix=frozen)
    for epoch in (0, 1, 4):
        batch = theirs.some_samples("train", range(7), epoch, CPU).inputs
        rows = by_row(ours, "train", epoch)
        for row in (0, 1, 3, 4, 6):
            assert torch.equal(rows[row]["pixel_values"], batch["pixel_values"][row])
    assert (ours.views, ours.cycle) == (theirs.views, theirs.cycle)


def test_tokens_are_those_of_the_tokenizer(make: Make, tokens: TokenPreprocessing) -> None:
    rows = by_row(make(some_pairs()), "train", 2)
    for row, (text,) in enumerate(texts_of(some_pairs())):
        assert rows[row]["input_ids"].tolist() == tokens.tokenizer(text or "")["input_ids"]


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_the_order_is_a_pure_function_of_seed_and_epoch(strategy: str, make: Make) -> None:
    """Loaders that jump to an epoch see what those see that went through all."""
    split = split_of(pictures(20), [" ".join(["word7"] * (n % 9 + 1)) for n in range(20)])

    def orders(*epochs: int, seed: int = 0) -> list[list[int]]:
        loaders = make(split, train_sampling_strategy=strategy, seed=seed)
        return [torch.cat([step.rows for step in one_pass(loaders, "train", epoch)]).tolist() for epoch in epochs]

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


def test_texts_that_are_truncated_are_noted(make: Make) -> None:
    loaders = make(some_pairs(), length=6)
    assert loaders.notes == ("Truncated to 6 tokens: 2 of 7 in train; 4 tokens (6.7%) were lost.",)
    assert max(batch["input_ids"].shape[1] for batch, *_ in one_pass(loaders, "train", 0)) == 6


def test_blank_loaders_decode_nothing_and_keep_all_else(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens, masks, what is present, targets and rows are needed behind stored layers, too."""
    whole = one_pass(make(some_pairs()), "train", 1)
    monkeypatch.setattr(PixelPreprocessing, "read", lambda *_: pytest.fail("an image was decoded"))
    loaders = make(some_pairs())
    blank = one_pass(loaders.without_first_layers(), "train", 1)
    assert len(blank) == len(whole) == 3
    for ours, theirs in zip(blank, whole, strict=True):
        assert ours.inputs.keys() == theirs.inputs.keys()
        assert ours.inputs["pixel_values"].shape == theirs.inputs["pixel_values"].shape
        assert not ours.inputs["pixel_values"].any()
        for name in ours.inputs.keys() - {"pixel_values"}:
            assert torch.equal(ours.inputs[name], theirs.inputs[name]), name
        assert same_labels(ours, theirs)
    assert loaders.without_first_layers().fingerprint("train", 1) == loaders.fingerprint("train", 1)


@pytest.mark.parametrize("blank", [False, True])
def test_targets_that_are_no_class_numbers_reach_the_model_unchanged(blank: bool, make: Make) -> None:
    """Also those of rows that do not count, and where one part of a pair is seen alone."""
    vectors = np.random.default_rng(1).normal(size=(7, 3)) * 100
    loaders = make(dataclasses.replace(some_pairs(), targets=vectors))
    loaders = loaders.without_first_layers() if blank else loaders
    for seen in (loaders, *PairModality().parts(loaders).values()):
        for step in one_pass(seen, "train", 0):
            assert step.targets.dtype == torch.float64
            assert np.array_equal(step.targets.numpy(), vectors[step.rows.numpy()])


@pytest.mark.parametrize(("part", "there"), [("image", PRESENT_IMAGES), ("text", PRESENT_TEXTS)])
def test_of_one_part_alone_the_samples_count_that_have_it(part: str, there: list[int], make: Make) -> None:
    """The other part is marked as missing; a sample without the part keeps what it has, and does not count."""
    loaders = PairModality().parts(make(some_pairs()))[part]
    other = {"image": "text_present", "text": "image_present"}[part]
    for row, sample in by_row(loaders, "train", None).items():
        assert sample["counted"] == bool(there[row])
        assert sample["target"] == row % 3
        if there[row]:
            assert (sample[f"{part}_present"].item(), sample[other].item()) == (True, False)
        elif row != 5:
            assert sample[other].item()
    assert loaders.fingerprint("train", None) != make(some_pairs()).fingerprint("train", None)


def changed(split: Split, **columns: Any) -> Split:
    """The same rows with other values in the first of them."""
    features = split.dataset.features
    values = {name: split.dataset[name][:] for name in features}
    for name, value in columns.items():
        values[name] = [value, *values[name][1:]]
    return Split(datasets.Dataset.from_dict(values, features=features), split.rows, split.targets, split.unreadable)


def test_the_fingerprint_changes_with_image_text_length_target_and_mask(make: Make) -> None:
    """And with nothing else: the same data twice give the same."""
    split = some_pairs()
    relabelled = Split(split.dataset, split.rows, (split.targets + 1) % 3, split.unreadable)
    others = [
        changed(split, image=raw_bytes(pictures(1, 8)[0])), changed(split, image=None), changed(split, text="word8"),
        changed(split, text=None), relabelled, some_pairs(mask=False),
    ]  # fmt: skip
    prints = [make(one).fingerprint("train", None) for one in (split, *others)]
    prints.append(make(split, length=6).fingerprint("train", None))
    prints.append(make(dataclasses.replace(split, targets=split.targets * 1.0)).fingerprint("train", None))
    assert len(set(prints)) == len(prints)
    assert make(some_pairs()).fingerprint("train", None) == prints[0]
    epochs = [make(split, frozen_prefix=True).fingerprint("train", epoch) for epoch in (None, 0, 1, 4)]
    assert len(set(epochs)) == 3
    assert epochs[1] == epochs[3]


@pytest.mark.parametrize("part", ["image", "text"])
def test_the_fingerprint_of_one_part_does_not_depend_on_what_the_other_becomes(part: str, make: Make) -> None:
    """But it changes with the rows, with what is missing, and with what counts."""
    split, picture = some_pairs(), raw_bytes(pictures(1, 8)[0])
    others = [
        changed(split, image=None), changed(split, text=None), changed(split, image=picture), some_pairs(mask=False),
    ]  # fmt: skip
    first, *prints = [make(one).fingerprint("train", None, part) for one in (split, *others)]
    assert len({first, *prints}) == 1 + len(others)
    assert (make(split, length=6).fingerprint("train", None, part) == first) == (part == "image")
    assert (make(split, frozen_prefix=True).fingerprint("train", 0, part) == first) == (part == "text")


def test_a_missing_text_and_an_empty_one_have_different_fingerprints(make: Make) -> None:
    """Both have the same tokens."""
    texts = [make(changed(some_pairs(), text=text)).fingerprint("train", None) for text in ("", None)]
    assert texts[0] != texts[1]


@pytest.mark.parametrize("skip", [False, True])
def test_an_image_that_turns_out_to_be_unreadable_stops_the_run_or_is_masked(skip: bool, make: Make) -> None:
    """Beyond --verify_samples only headers were read; a missing image is no such case."""
    whole = pictures(1)[0]
    split = split_of([whole[: len(whole) // 2], None, *([whole] * 99)], ["word7"] * 101)
    loaders = make(split, on_bad_sample="skip" if skip else "error", per_device_train_batch_size=101)
    if skip:
        rows = by_row(loaders, "train", 0)
        assert [row for row, sample in rows.items() if not sample["counted"]] == [0]
        assert all(sample["target"] == row % 3 for row, sample in rows.items())
        assert not rows[0]["image_present"]
        return
    with user_error_with(expected="images that can be read", found="row 0: damaged", do="--on_bad_sample skip"):
        one_pass(loaders, "train", 0)


def test_workers_change_nothing_and_end_when_the_loaders_are_closed(make: Make) -> None:
    """They ignore signals, and would keep the process from ending."""
    split = split_of(pictures(7), ["word7 word8"] * 7)
    before = set(multiprocessing.active_children())
    loaders = make(split, dataloader_num_workers=1)
    for ours, theirs in zip(one_pass(loaders, "train", 1), one_pass(make(split), "train", 1), strict=True):
        assert same_labels(ours, theirs)
        assert all(torch.equal(ours.inputs[name], theirs.inputs[name]) for name in theirs.inputs)
    parts = PairModality().parts(loaders)
    one_pass(parts["text"], "test", None)
    assert len(set(multiprocessing.active_children()) - before) == 2
    loaders.close()
    assert not set(multiprocessing.active_children()) - before


def test_workers_that_are_started_afresh_can_be_sent_what_they_need(make: Make) -> None:
    """As on macOS, where nothing is inherited: a closure could not be sent."""
    loader = make(some_pairs()).train
    assert len(ForkingPickler.dumps((loader.dataset, loader.collate_fn))) > 0


def test_the_longest_samples_are_known_by_their_tokens(make: Make) -> None:
    """The search for the largest batch that fits needs them."""
    assert make(some_pairs()).train.dataset.lengths.tolist() == [3, 4, 5, 2, 7, 2, 9]


def test_inputs_of_pairs_that_belong_to_no_split_are_those_of_the_loaders(
    make: Make, pixels: PixelPreprocessing, tokens: TokenPreprocessing
) -> None:
    """Whichever of the two is missing."""
    rows = by_row(make(some_pairs(), augmentation="none"), "train", None)
    split = some_pairs()
    chosen = [0, 2, 3]
    given = [
        (decode(encoded_image(split, row)) if PRESENT_IMAGES[row] else None, text)
        for row, (text,) in enumerate(texts_of(split))
        if row in chosen
    ]
    preprocessing = PairPreprocessing(pixels, tokens)
    inputs = preprocessing.inputs(given)
    for place, row in enumerate(chosen):
        length = int(inputs["attention_mask"][place].sum())
        for name, value in inputs.items():
            expected = rows[row][name]
            assert torch.equal(value[place][:length] if value.ndim == 2 else value[place], expected), name
    blank = preprocessing.inputs([(Image.new("RGB", (9, 9)), " \n")])
    assert (blank["image_present"].item(), blank["text_present"].item()) == (True, False)


def test_a_pair_without_both_parts_is_refused(pixels: PixelPreprocessing, tokens: TokenPreprocessing) -> None:
    with user_error_with(expected="an image, a text, or both", found="neither, in pair 2", do="give at least one"):
        PairPreprocessing(pixels, tokens).inputs([(None, "word7"), (None, "  ")])


def test_the_example_is_of_two_whole_pairs(pixels: PixelPreprocessing, tokens: TokenPreprocessing, make: Make) -> None:
    example = PairPreprocessing(pixels, tokens).example()
    batch = one_pass(make(some_pairs()), "train", 0)[0].inputs
    assert example.keys() == batch.keys()
    assert all(len(value) == 2 for value in example.values())
    assert example["image_present"].all()
    assert example["text_present"].all()
    assert example["input_ids"][1, -1] == PAD


def test_pictures_of_a_sample_of_letters_are_not_mirrored(make: Make) -> None:
    """Mirroring would make another letter of some."""
    for name, mirrored in (("sample:glyph-names", False), ("mine", True)):
        to_inputs = make(some_pairs(), dataset_name=name).to_inputs
        assert isinstance(to_inputs, PairInputs)
        assert isinstance(to_inputs.images, ImageInputs)
        assert to_inputs.images.augmentation.flip is mirrored
