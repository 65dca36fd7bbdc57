"""From texts to batches: the tokenizer's own tokens, cut and counted, padded to the longest, in an order of lengths."""

import itertools
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_transfer.data import samples
from hf_transfer.data.inputs import MASKED, Loaders
from hf_transfer.data.sources import Splits
from hf_transfer.data.splits import Split
from hf_transfer.data.tokens import LengthGroupedSampler, TextRows, TokenPipeline, text_loaders
from hf_transfer.models.pretrained import Checkpoint
from tests.data.conftest import TextSettings, mistake_saying
from tests.tiny_text_models import END, PAD, START, tiny_text_model, tiny_tokenizer

TEXTS = [("word7 word8 word9",), ("word5",), ("Word6, and SOMETHING else",), ("word7 " * 30,)]
PAIRS = [("word7 word8", "word9"), ("word5", "word6 " * 30), ("word7 " * 20, "word8 " * 20), ("word9 " * 40, "word5")]


def pipeline(length: int | None = None, **settings: Any) -> TokenPipeline:
    """A pipeline of the tiny tokenizer."""
    return TokenPipeline(tiny_tokenizer(**settings), model_limit=40, max_seq_length=length)


def split_of(texts: Sequence[str | None], *, bad: Sequence[int] = (), seed: int = 0) -> Split:
    """A split whose rows are numbered from 100 on, with two classes in turn."""
    data = datasets.Dataset.from_dict({"text": [*["filling"] * 100, *texts]})
    rows = np.arange(100, 100 + len(texts))
    return Split(data, rows, np.arange(len(texts)) % 2, bad=dict.fromkeys((100 + row for row in bad), "empty"))


def of_lengths(lengths: npt.NDArray[np.int64]) -> list[str]:
    """Texts of so many words, each beginning with its own number."""
    return [" ".join(["word9"] * length) for length in lengths.tolist()]


def loaders_of(settings: TextSettings, texts: Sequence[str], *, length: int | None = None, **chosen: Any) -> Loaders:
    """Loaders of three splits with the same texts."""
    split = split_of(texts)
    splits = Splits(split, split, split, "texts", ["a", "b"], {}, [])
    return text_loaders(splits, pipeline(length), settings(**chosen), Accelerator(cpu=True))


@pytest.fixture(scope="module")
def minilm() -> Any:
    """The tokenizer of the packaged sample, a real one of word pieces."""
    return AutoTokenizer.from_pretrained(samples.backbone_folder("sample:minilm"))


@pytest.mark.parametrize("texts", [TEXTS, PAIRS], ids=["texts", "pairs"])
@pytest.mark.parametrize("length", [None, 3, 8, 16])
@pytest.mark.parametrize("kind", ["tiny", "minilm"])
def test_tokens_are_those_of_the_tokenizer_itself(
    kind: str, length: int | None, texts: list[tuple[str, ...]], minilm: Any
) -> None:
    """Ids, types of the texts in a pair, masks; cut as the tokenizer cuts, of a pair the longer text first."""
    tokenizer = tiny_tokenizer() if kind == "tiny" else minilm
    found, lost = TokenPipeline(tokenizer, model_limit=None, max_seq_length=length).encode(texts)
    limit = length or tokenizer.model_max_length
    for ours, missing, text in zip(found, lost, texts, strict=True):
        theirs = tokenizer(*text, truncation="longest_first", max_length=limit)
        assert ours == dict(theirs)
        assert missing == len(tokenizer(*text, verbose=False)["input_ids"]) - len(theirs["input_ids"])


def test_a_pair_is_told_apart_by_its_token_types() -> None:
    """By hand: the start token, two words and an end token are the first text, a word and an end token the second."""
    [encoded], _ = pipeline().encode([("word7 word8", "word9")])
    assert encoded["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    assert [encoded["input_ids"][place] for place in (0, 3, 5)] == [START, END, END]


def test_of_a_pair_the_longer_text_is_cut_first() -> None:
    """By hand: 10 tokens, 3 of them special; the text of 2 words stays whole, the other keeps 5."""
    for pair, kept in ((("word5 word6", "word7 " * 9), (2, 5)), (("word7 " * 9, "word5 word6"), (5, 2))):
        [encoded], lost = pipeline(10).encode([pair])
        types = encoded["token_type_ids"]
        assert (types.count(0) - 2, types.count(1) - 1) == kept
        assert lost == [4]


@pytest.mark.parametrize(
    ("tokenizer_limit", "model_limit", "asked", "length"),
    [
        (32, 40, None, 32),
        (50, 40, None, 40),
        (10**30, 40, None, 40),
        (10**30, None, None, 512),
        (10**30, -1, None, 512),
        (32, 40, 10, 10),
        (32, 40, 32, 32),
        (10**30, None, 2000, 2000),
    ],
)
def test_texts_are_cut_at_what_was_asked_for_or_at_what_tokenizer_and_model_take(
    tokenizer_limit: int, model_limit: int | None, asked: int | None, length: int
) -> None:
    """XLNet says -1 for no limit, tokenizers say something huge."""
    made = TokenPipeline(
        tiny_tokenizer(model_max_length=tokenizer_limit), model_limit=model_limit, max_seq_length=asked
    )
    assert made.max_length == length
    [text], _ = made.encode([("word7 " * 3000,)])
    assert len(text["input_ids"]) == length


def test_more_tokens_than_the_model_takes_are_refused() -> None:
    with mistake_saying(expected="of at most 32, which is what the model can take", found="33", do="lower it"):
        pipeline(33)


def test_a_batch_is_padded_to_its_longest_text_and_not_further() -> None:
    made = pipeline()
    texts, _ = made.encode(TEXTS[:3])
    batch = made.pad(texts)
    lengths = [len(text["input_ids"]) for text in texts]
    assert {name: tuple(value.shape) for name, value in batch.items()} == dict.fromkeys(
        ("input_ids", "token_type_ids", "attention_mask"), (3, max(lengths))
    )
    for row, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        assert batch["input_ids"][row].tolist() == text["input_ids"] + [PAD] * (max(lengths) - length)
        assert batch["attention_mask"][row].tolist() == [1] * length + [0] * (max(lengths) - length)
    assert all(value.dtype == torch.int64 for value in batch.values())


def test_the_example_has_two_texts_of_different_length() -> None:
    """A model is traced with it: its masks must matter."""
    mask = pipeline().example()["attention_mask"]
    assert mask.shape[0] == 2
    assert mask[0].sum() > mask[1].sum()


def test_a_text_of_no_tokens_has_one() -> None:
    """A batch of them would have no shape."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = None
    made = TokenPipeline(tokenizer, model_limit=None)
    batch = made.inputs([("",), (" ",)])
    assert batch["input_ids"].tolist() == [[PAD], [PAD]]
    assert batch["attention_mask"].tolist() == [[1], [1]]
    assert batch["input_ids"].dtype == torch.int64


@pytest.mark.parametrize("pad", [True, False])
def test_a_tokenizer_without_a_pad_token_pads_with_its_end_of_text_and_says_so(pad: bool) -> None:
    made = pipeline(pad=pad)
    assert made.notes == ([] if pad else ["The tokenizer has no pad token: texts are padded with [SEP]."])
    assert made.inputs([("word7 word8",), ("word7",)])["input_ids"][1, -1] == (PAD if pad else END)


def test_the_logits_of_a_text_alone_are_those_in_a_padded_batch_of_a_model_without_a_pad_token(tmp_path: Path) -> None:
    """GPT-2 judges by the last token that is no padding, so its config must say which token that is."""
    tiny_text_model("gpt2", pad_token_id=None, num_labels=2).save_pretrained(tmp_path)
    tiny_tokenizer(pad=False).save_pretrained(tmp_path)
    checkpoint = Checkpoint(str(tmp_path), task="text-classification")
    made = TokenPipeline(checkpoint.tokenizer(), model_limit=checkpoint.longest_input)
    model: Any = checkpoint.classifier(["a", "b"], seed=0, fresh_weights=False).eval()
    texts = [("word7 word8 word9",), ("word5",), ("word6 word7 word8 word9 word10",)]
    with torch.no_grad():
        together = model(**made.inputs(texts)).logits
        alone = torch.cat([model(**made.inputs([text])).logits for text in texts])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3
    model.save_pretrained(tmp_path / "saved")
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").config.pad_token_id == END


def test_a_row_has_its_tokens_its_label_and_its_number_and_a_bad_one_is_masked_in_place() -> None:
    texts = ["word7 word8", None, "word9", "word7 " * 40]
    rows = TextRows(split_of(texts, bad=[1]), pipeline())
    assert len(rows) == 4
    assert [rows[place]["index"] for place in range(4)] == [100, 101, 102, 103]
    assert [rows[place]["label"] for place in range(4)] == [0, MASKED, 0, 1]
    tokenizer = tiny_tokenizer()
    for place, text in enumerate(texts):
        assert rows[place]["tokens"] == dict(tokenizer(text or "", truncation=True))
    assert rows.lengths.tolist() == [4, 2, 3, 32]
    assert rows.lost.tolist() == [0, 0, 0, 10]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=300), st.integers(1, 9), st.integers(0, 99), st.integers(0, 9))
def test_the_order_by_length_is_a_permutation_pure_in_seed_and_epoch_with_whole_batches_first(
    lengths: list[int], batch_size: int, seed: int, epoch: int
) -> None:
    """The batches that the sampler meant are the ones that a loader cuts: those that are not full come last."""
    array = np.asarray(lengths, dtype=np.int64)
    orders = []
    for _ in range(2):
        sampler = LengthGroupedSampler(array, batch_size, seed)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == list(range(len(lengths)))
    # Within a batch, from the longest on: a batch that was shifted would begin somewhere in the middle.
    for start in range(0, len(lengths), batch_size):
        batch = array[orders[0][start : start + batch_size]]
        assert (np.diff(batch) <= 0).all()


def test_the_order_by_length_changes_with_the_seed_and_the_epoch() -> None:
    lengths = np.random.default_rng(0).integers(2, 60, 400)
    orders = set()
    for seed, epoch in itertools.product((0, 1), (0, 1, 2)):
        sampler = LengthGroupedSampler(lengths, 8, seed)
        sampler.set_epoch(epoch)
        orders.add(tuple(sampler))
    assert len(orders) == 6


def test_batches_do_not_come_in_the_order_of_their_lengths() -> None:
    """Else an epoch would go from long texts to short ones."""
    lengths = np.random.default_rng(0).integers(2, 60, 400)
    firsts = lengths[list(LengthGroupedSampler(lengths, 8, 0))[::8]]
    assert abs(np.corrcoef(np.arange(len(firsts)), firsts)[0, 1]) < 0.5


def padding_share(loaders: Loaders) -> float:
    masks = [batch["attention_mask"] for batch in loaders.train]
    share: float = 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
    return share


def test_an_order_by_length_wastes_far_less_on_padding_than_a_random_one(text_settings: TextSettings) -> None:
    texts = of_lengths(np.random.default_rng(0).integers(1, 30, 600))
    waste = {
        strategy: padding_share(
            loaders_of(text_settings, texts, train_sampling_strategy=strategy, per_device_train_batch_size=8)
        )
        for strategy in ("group_by_length", "random")
    }
    assert waste["random"] > 0.3
    assert waste["group_by_length"] < 0.1 * waste["random"]


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_batches_are_equal_under_any_number_of_workers(strategy: str, text_settings: TextSettings) -> None:
    texts = of_lengths(np.random.default_rng(1).integers(1, 30, 50))

    def batches(workers: int) -> list[dict[str, Tensor]]:
        loaders = loaders_of(
            text_settings, texts, train_sampling_strategy=strategy, per_device_train_batch_size=8,
            dataloader_num_workers=workers, seed=3,
        )  # fmt: skip
        loaders.train.set_epoch(2)
        return list(loaders.train)

    for ours, theirs in zip(batches(0), batches(2), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_workers_that_are_started_afresh_can_be_sent_what_they_need(text_settings: TextSettings) -> None:
    """As on macOS, where nothing is inherited: a closure could not be sent."""
    loaders = loaders_of(text_settings, ["word7", "word8 word9"])
    sent = ForkingPickler.dumps((loaders.train.collate_fn, loaders.train.dataset))
    assert len(sent) > 0


@pytest.mark.parametrize("size", [1, 7, 16, 33])
def test_evaluation_sees_every_sample_exactly_once_from_the_longest_on(size: int, text_settings: TextSettings) -> None:
    lengths = np.random.default_rng(size).integers(1, 30, size)
    loaders = loaders_of(text_settings, of_lengths(lengths), per_device_eval_batch_size=8)
    for name in ("validation", "test"):
        batches = list(loaders.of(name))
        assert sorted(torch.cat([batch["index"] for batch in batches]).tolist()) == list(range(100, 100 + size))
        widths = [batch["input_ids"].shape[1] for batch in batches]
        assert widths == sorted(widths, reverse=True)
        for batch in batches:
            assert batch["labels"].tolist() == [(row - 100) % 2 for row in batch["index"].tolist()]
            expected = lengths[batch["index"].numpy() - 100] + 2
            assert batch["attention_mask"].sum(1).tolist() == expected.tolist()


@pytest.mark.parametrize("strategy", ["group_by_length", "random"])
def test_training_sees_every_sample_once_in_an_epoch_in_the_order_of_the_setting(
    strategy: str, text_settings: TextSettings
) -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 40)
    loaders = loaders_of(
        text_settings, of_lengths(lengths), train_sampling_strategy=strategy, per_device_train_batch_size=8
    )
    index = [batch["index"] - 100 for batch in loaders.train]
    assert sorted(torch.cat(index).tolist()) == list(range(40))
    sorted_batches = [bool((np.diff(lengths[part.numpy()]) <= 0).all()) for part in index]
    assert all(sorted_batches) == (strategy == "group_by_length")


def test_inputs_labels_and_row_numbers_are_told_apart(text_settings: TextSettings) -> None:
    loaders = loaders_of(text_settings, ["word7 word8", "word9"])
    batch = next(iter(loaders.test))
    inputs, labels, index = loaders.to_inputs(batch, torch.device("cpu"), "test", None)
    assert set(inputs) == {"input_ids", "token_type_ids", "attention_mask"}
    assert (labels.tolist(), index.tolist()) == ([0, 1], [100, 101])


def test_what_was_cut_is_counted_exactly_in_texts_and_tokens(text_settings: TextSettings) -> None:
    """By hand: at 8 tokens 6 words stay; of 4 texts two lose 1 and 14 words, in each of three splits.

    3 x (2 + 6 + 7 + 20) words and 2 special tokens for each of 12 texts make 129 tokens, of which 45 are lost.
    """
    texts = of_lengths(np.asarray([2, 6, 7, 20]))
    loaders = loaders_of(text_settings, texts, length=8)
    assert loaders.notes == (
        "Cut at 8 tokens: 2 of 4 in train, 2 of 4 in validation, 2 of 4 in test; 45 tokens (34.9%) were lost.",
    )
    assert loaders_of(text_settings, texts[:2], length=8).notes == ()
