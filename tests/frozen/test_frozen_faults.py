"""Stores that are wrong, incomplete or damaged, and models that cannot be stored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, ConvBertConfig, FNetConfig

from hf_transfer.data.batches import Batch
from hf_transfer.errors import UserError
from hf_transfer.frozen import recording, store
from hf_transfer.frozen.recording import Part
from hf_transfer.frozen.store import Store
from hf_transfer.models.cutting import Cut
from tests.frozen.frozen_task import SAMPLES, Task, assert_equal, damage, set_costs, texts
from tests.tiny_models import CLASSES, perturb
from tests.tiny_text_models import PAD, VOCABULARY
from tests.training.toy_task import Rows


def record_as(monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], Tensor]) -> None:
    """Change all recorded activations; the test of the cut does not detect it."""
    record = Cut.record
    monkeypatch.setattr(Cut, "record", lambda *args: [change(tensor) for tensor in record(*args)])
    monkeypatch.setattr(Cut, "_test", lambda *_: None)


def wrong(tensor: Tensor) -> Tensor:
    """Change every other number by 1e-2: a norm would remove a shift of all numbers."""
    return tensor + 1e-2 * (torch.arange(tensor.shape[-1]) % 2)


@pytest.mark.parametrize("wanted", ["on", "auto"])
def test_activations_that_do_not_give_the_live_loss_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    task = Task(tmp_path)
    set_costs(monkeypatch, 1.0, 0.0, 0.0)
    record_as(monkeypatch, wrong)
    with pytest.raises(UserError) as refused:
        task.run(cache_frozen=wanted)
    message = " ".join(str(refused.value).split())
    assert "Expected: from stored activations the loss of a live run, " in message
    assert " on the first batch Found: " in message
    assert "Do this: use --cache_frozen off, and please report this with the name of the model" in message


def test_the_model_is_complete_after_such_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[tuple[nn.Module, list[nn.Module]]] = []
    task = Task(tmp_path, edit=lambda model: models.append((model, list(model.modules()))))
    record_as(monkeypatch, wrong)
    with pytest.raises(UserError):
        task.run()
    ((model, modules),) = models
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))


def test_non_finite_activations_stop_the_run_with_the_same_error(
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
    """Simulates a kill of the process."""


@dataclass
class Chunks:
    """Records the computed chunks, and ends the run after a number of batches."""

    computed: list[tuple[str, int]] = field(default_factory=list)
    left: int = 10**9


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> Chunks:
    """Chunks of eight samples, two batches each; the run is killed after `left` batches."""
    monkeypatch.setattr(store, "CHUNK_SAMPLES", 8)
    chunks, compute = Chunks(), recording.computed

    def record_chunks(given: Store, numbers: Sequence[int], record: Any, passes: Any, part: Part) -> Any:
        chunks.computed.extend((part[0], number) for number in numbers)

        def counted(inputs: Batch) -> Any:
            chunks.left -= 1
            if chunks.left < 0:
                raise KilledError
            return record(inputs)

        yield from compute(given, numbers, counted, passes, part)

    monkeypatch.setattr(recording, "computed", record_chunks)
    return chunks


ALL_CHUNKS = [*(("train", number) for number in range(3)), *(("validation", number) for number in range(2))]


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_the_complete_chunks_of_a_killed_run_are_kept(tmp_path: Path, chunks: Chunks, name: str) -> None:
    task = Task.of(tmp_path, name, cycle=1)
    chunks.left = 3
    with pytest.raises(KilledError):
        task.run()
    kept = task.files()
    assert [Path(path).name for path in kept] == ["000000.safetensors"]
    chunks.computed, chunks.left = [], 10**9
    completed = task.run()
    assert chunks.computed == ALL_CHUNKS[1:]
    files = task.files()
    assert len(files) == 5
    assert kept.items() <= files.items(), "a complete chunk is not written again"
    # The store is bit for bit that of an uninterrupted run.
    elsewhere = replace(task, folder=tmp_path / "elsewhere")
    assert_equal(completed, elsewhere.run(), task.validation)
    assert elsewhere.files() == files
    assert_equal(completed, task.run(cache_frozen="off"), task.validation)


def test_chunks_are_limited_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHUNK_BYTES", 3_000)
    task = Task(tmp_path)
    task.run()
    # 24 and 10 samples of 489 bytes, six of them in a chunk, and a header.
    counts = [(len(content) - 200) // 489 for content in task.files().values()]
    assert sorted(counts) == [4, 6, 6, 6, 6, 6]


@pytest.mark.parametrize("destroy", [damage, lambda path: path.write_bytes(path.read_bytes()[:-9]), Path.unlink])
def test_only_damaged_chunks_are_computed_again(tmp_path: Path, chunks: Chunks, destroy: Callable[[Path], Any]) -> None:
    task = Task(tmp_path)
    first = task.run()
    assert chunks.computed == ALL_CHUNKS
    files = task.files()
    chunks.computed = []
    for path in files:
        if path.endswith("000001.safetensors"):
            destroy(tmp_path / "frozen" / path)
    assert_equal(task.run(), first, task.validation, tolerance=0)
    assert chunks.computed == [("train", 1), ("validation", 1)]
    assert task.files() == files
    chunks.computed = []
    task.run()
    assert chunks.computed == []


def test_other_samples_do_not_get_the_stored_activations(tmp_path: Path, chunks: Chunks) -> None:
    """Other pixels, with the same sizes and labels."""
    task = Task(tmp_path)
    first = task.run()
    changed = replace(task, rows=Rows(SAMPLES, seed=7))
    second = changed.run()
    assert chunks.computed == [*ALL_CHUNKS, *ALL_CHUNKS[:3]]
    assert second.history[0]["train_loss"] != pytest.approx(first.history[0]["train_loss"], abs=1e-3)
    assert_equal(second, changed.run(cache_frozen="off"), task.validation)


@pytest.mark.parametrize(
    ("name", "model"),
    [("vit", {"hidden_dropout_prob": 0.3}), ("bert", {"hidden_dropout_prob": 0.3, "classifier_dropout": 0.2})],
)
@pytest.mark.parametrize("wanted", ["on", "auto"])
def test_dropout_is_the_same_with_the_store(tmp_path: Path, name: str, model: dict[str, Any], wanted: str) -> None:
    """Filling the store, or measuring costs, draws nothing from torch's generator."""
    task = Task.of(tmp_path, name, model=model)
    live, again = task.run(cache_frozen="off"), task.run(cache_frozen="off", seed=1)
    assert live.history[0]["train_loss"] != again.history[0]["train_loss"]
    assert_equal(task.run(cache_frozen=wanted), live, task.validation)


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


def test_a_model_that_reads_padding_is_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution reaches from the last tokens into the padding."""
    heads: dict[str, Any] = {"num_attention_heads": 2, "embedding_size": 24, "conv_kernel_size": 3, "head_ratio": 1}
    task = Task.of(tmp_path, "bert", make=_other_text_model(ConvBertConfig(**WORDS, **LAYERS, **heads)))
    set_costs(monkeypatch, 1.0, 0.0, 0.0)
    live = task.run(cache_frozen="off", trainable_layers=2)
    assert_equal(task.run(cache_frozen="auto", trainable_layers=2), live, task.validation)


def test_texts_without_a_mask_are_not_stored(tmp_path: Path) -> None:
    """FNet's tokenizer makes no mask."""
    task = Task.of(tmp_path, "bert", make=_other_text_model(FNetConfig(**WORDS, **LAYERS, hidden_dropout_prob=0.0)))
    for rows in texts(task):
        del rows.inputs["attention_mask"]
    with pytest.raises(UserError, match="with --cache_frozen on a model whose frozen layers can be stored"):
        task.run()


class ChannelsFirst(nn.Module):
    """A text model whose blocks return [samples, channels, tokens], as SqueezeBERT's do."""

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


def test_with_tokens_as_the_last_dimension_the_run_is_that_without_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task.of(tmp_path, "bert", make=ChannelsFirst)
    live = task.run(cache_frozen="off")
    set_costs(monkeypatch, 1.0, 0.0, 0.0)
    assert_equal(task.run(cache_frozen="auto"), live, task.validation)
