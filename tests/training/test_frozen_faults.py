"""Stores that are wrong, half there or damaged, and models that cannot be stored."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, ConvBertConfig, FNetConfig

from hf_transfer.config import UserError
from hf_transfer.models.cutting import Cut
from hf_transfer.training import recording, store
from hf_transfer.training.store import Store
from tests.tiny_models import CLASSES, perturb
from tests.tiny_text_models import PAD, VOCABULARY
from tests.training.frozen_task import SAMPLES, Batch, Task, assert_equal, costing, damage, texts
from tests.training.toy_task import (
    Rows,
)


def record_as(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]) -> None:
    """Whatever is recorded is changed, and no one notices when the place is tried."""
    record = Cut.record
    monkeypatch.setattr(Cut, "record", lambda *given: [change(tensor) for tensor in record(*given)])
    monkeypatch.setattr(Cut, "_try_out", lambda *_: None)


def wrong(tensor: Tensor) -> Tensor:
    """By 1e-2, every other number, because a norm would take no notice of a shift of all."""
    return tensor + 1e-2 * (torch.arange(tensor.shape[-1]) % 2)


@pytest.mark.parametrize("asked", ["on", "auto"])
def test_activations_that_do_not_give_the_live_loss_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    task = Task(tmp_path)
    costing(monkeypatch, 1.0, 0.0, 0.0)
    record_as(monkeypatch, wrong)
    with pytest.raises(UserError) as refused:
        task.run(cache_frozen=asked)
    said = " ".join(str(refused.value).split())
    assert "Expected: from stored activations the loss of a live run, " in said
    assert " on the first batch Found: " in said
    assert "Do this: use --cache_frozen off, and please report this with the name of the model" in said


def test_the_model_is_whole_after_such_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[nn.Module, list[nn.Module]]] = []
    task = Task(tmp_path, edit=lambda model: kept.append((model, list(model.modules()))))
    record_as(monkeypatch, wrong)
    with pytest.raises(UserError):
        task.run()
    ((model, modules),) = kept
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))


def test_activations_that_are_no_numbers_stop_the_run_in_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_as(monkeypatch, lambda tensor: tensor * torch.nan)
    with pytest.raises(UserError, match="from stored activations the loss of a live run"):
        Task(tmp_path).run()


def test_activations_that_float16_cannot_hold_are_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_as(monkeypatch, lambda tensor: tensor * 1e6)
    with pytest.raises(UserError, match=r"activations that float16 can hold(.|\n)*use --cache_dtype bfloat16"):
        Task(tmp_path).run(cache_dtype="float16")


class KilledError(Exception):
    """Stands for the end of the process."""


@dataclass
class Chunks:
    """Chunks that were computed, and when that is to end."""

    computed: list[tuple[str, int]] = field(default_factory=list)
    left: int = 10**9


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> Chunks:
    """Chunks of eight samples, two batches each; after so many batches the run is killed."""
    monkeypatch.setattr(store, "CHUNK_SAMPLES", 8)
    chunks, compute = Chunks(), recording.computed

    def noting(given: Store, numbers: Sequence[int], record: Any, *rest: Any) -> Iterator[Any]:
        split = rest[1]
        chunks.computed.extend((split, number) for number in numbers)

        def counted(inputs: Batch) -> Any:
            chunks.left -= 1
            if chunks.left < 0:
                raise KilledError
            return record(inputs)

        yield from compute(given, numbers, counted, *rest)

    monkeypatch.setattr(recording, "computed", noting)
    return chunks


EVERY_CHUNK = [*(("train", number) for number in range(3)), *(("validation", number) for number in range(2))]


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_a_run_that_was_killed_is_completed_by_whole_chunks(tmp_path: Path, chunks: Chunks, name: str) -> None:
    task = Task.of(tmp_path, name, cycle=1)
    chunks.left = 3
    with pytest.raises(KilledError):
        task.run()
    left = task.files()
    assert [Path(path).name for path in left] == ["000000.safetensors"]
    chunks.computed, chunks.left = [], 10**9
    completed = task.run()
    assert chunks.computed == EVERY_CHUNK[1:]
    files = task.files()
    assert len(files) == 5
    assert left.items() <= files.items(), "a chunk that is whole is not written again"
    # What was completed is to the bit what is written at one go.
    elsewhere = replace(task, folder=tmp_path / "elsewhere")
    assert_equal(completed, elsewhere.run(), task.validation)
    assert elsewhere.files() == files
    assert_equal(completed, task.run(cache_frozen="off"), task.validation)


def test_chunks_are_no_larger_than_so_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHUNK_BYTES", 3_000)
    task = Task(tmp_path)
    task.run()
    # 24 and 10 samples of 488 bytes, six of them in a chunk, and a header.
    counts = [(len(content) - 200) // 488 for content in task.files().values()]
    assert sorted(counts) == [4, 6, 6, 6, 6, 6]


@pytest.mark.parametrize("harm", [damage, lambda path: path.write_bytes(path.read_bytes()[:-9]), Path.unlink])
def test_a_damaged_chunk_alone_is_computed_again(tmp_path: Path, chunks: Chunks, harm: Callable[[Path], Any]) -> None:
    task = Task(tmp_path)
    first = task.run()
    assert chunks.computed == EVERY_CHUNK
    files = task.files()
    chunks.computed = []
    hurt = [path for path in files if path.endswith("000001.safetensors")]
    for path in hurt:
        harm(tmp_path / "frozen" / path)
    assert_equal(task.run(), first, task.validation, tolerance=0)
    assert chunks.computed == [("train", 1), ("validation", 1)]
    assert task.files() == files
    chunks.computed = []
    task.run()
    assert chunks.computed == []


def test_other_samples_of_the_same_names_are_not_served_by_the_old_store(tmp_path: Path, chunks: Chunks) -> None:
    """Other pixels, of the same sizes and with the same labels."""
    task = Task(tmp_path)
    first = task.run()
    changed = replace(task, rows=Rows(SAMPLES, seed=7))
    second = changed.run()
    assert chunks.computed == [*EVERY_CHUNK, *EVERY_CHUNK[:3]]
    assert second.history[0]["train_loss"] != pytest.approx(first.history[0]["train_loss"], abs=1e-3)
    assert_equal(second, changed.run(cache_frozen="off"), task.validation)


@pytest.mark.parametrize(
    ("name", "model"),
    [("vit", {"hidden_dropout_prob": 0.3}), ("bert", {"hidden_dropout_prob": 0.3, "classifier_dropout": 0.2})],
)
@pytest.mark.parametrize("asked", ["on", "auto"])
def test_what_learns_drops_the_same_numbers(tmp_path: Path, name: str, model: dict[str, Any], asked: str) -> None:
    """Building the store, or measuring, draws nothing from torch's generator."""
    task = Task.of(tmp_path, name, model=model)
    live, again = task.run(cache_frozen="off"), task.run(cache_frozen="off", seed=1)
    assert live.history[0]["train_loss"] != again.history[0]["train_loss"]
    assert_equal(task.run(cache_frozen=asked), live, task.validation)


def _other_text_model(config: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: nn.Module = AutoModelForSequenceClassification.from_config(config)
        perturb(model, 1)
        return model.eval()

    return make


WORDS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40,
    "pad_token_id": PAD,
    "num_labels": CLASSES,
}


LAYERS: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 3, "intermediate_size": 32}


def test_a_model_that_looks_at_padding_is_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution reaches from the last words into the padding."""
    heads: dict[str, Any] = {"num_attention_heads": 2, "embedding_size": 24, "conv_kernel_size": 3, "head_ratio": 1}
    task = Task.of(tmp_path, "bert", make=_other_text_model(ConvBertConfig(**WORDS, **LAYERS, **heads)))
    costing(monkeypatch, 1.0, 0.0, 0.0)
    live = task.run(cache_frozen="off", trainable_layers=2)
    assert_equal(task.run(cache_frozen="auto", trainable_layers=2), live, task.validation)


def test_texts_without_a_mask_are_not_stored(tmp_path: Path) -> None:
    """FNet's tokenizer makes none."""
    task = Task.of(tmp_path, "bert", make=_other_text_model(FNetConfig(**WORDS, **LAYERS, hidden_dropout_prob=0.0)))
    for rows in texts(task):
        del rows.inputs["attention_mask"]
    with pytest.raises(UserError, match="with --cache_frozen on a model whose frozen layers can be stored"):
        task.run()


class ChannelsFirst(nn.Module):
    """A text model whose blocks give [samples, channels, tokens], as SqueezeBERT's do."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.words = nn.Embedding(VOCABULARY, 8)
            self.blocks = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(3))
            self.classifier = nn.Linear(8, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        hidden = self.words(input_ids).mT
        for block in self.blocks:
            hidden = block(hidden)
        return SimpleNamespace(logits=self.classifier((hidden * attention_mask[:, None]).mean(-1)))


def test_tokens_that_are_not_the_second_size_are_not_stored_or_stored_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task.of(tmp_path, "bert", make=ChannelsFirst)
    live = task.run(cache_frozen="off")
    costing(monkeypatch, 1.0, 0.0, 0.0)
    assert_equal(task.run(cache_frozen="auto"), live, task.validation)
