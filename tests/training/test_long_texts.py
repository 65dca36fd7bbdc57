"""Evaluation batches of long texts go through the model in parts, with the same outputs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_transfer.data.batches import in_parts
from hf_transfer.settings.run import TextConfig, VisionConfig
from hf_transfer.strategies.choice import choose_strategy
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.loop import fit
from hf_transfer.training.predictions import predict_split
from tests.training.launched import two_forks
from tests.training.long_texts import AT_ONCE, Calls, loaders_with_lengths, longest_first
from tests.training.toy_task import TextRows, loaders_of, settings, tiny


def test_batches_of_more_tokens_go_in_parts_and_the_outputs_are_the_same() -> None:
    model, *_ = tiny("bert")
    rows = longest_first(11)
    with start_accelerator(settings()) as accelerator:
        whole = predict_split(model, loaders_with_lengths(accelerator, rows, None), "validation", accelerator)
        calls = Calls(model)
        parts = predict_split(model, loaders_with_lengths(accelerator, rows, AT_ONCE), "validation", accelerator)
    assert max(calls.tokens) <= AT_ONCE
    # The shortest texts, of 4 tokens, still share a batch.
    assert 6 < len(calls.tokens) < 11
    assert parts.index.tolist() == whole.index.tolist() == list(range(11))
    torch.testing.assert_close(parts.outputs, whole.outputs)


def test_a_text_that_is_longer_than_that_goes_alone() -> None:
    model, *_ = tiny("bert")
    with start_accelerator(settings()) as accelerator:
        calls = Calls(model)
        predict_split(model, loaders_with_lengths(accelerator, longest_first(4), 3), "validation", accelerator)
    assert len(calls.tokens) == 4


@pytest.mark.parametrize(("strategy", "cache_frozen"), [("linear_probe", "on"), ("partial", "on"), ("full", "off")])
def test_a_run_computes_no_more_tokens_at_once_and_comes_to_the_same(
    strategy: str, cache_frozen: str, tmp_path: Path
) -> None:
    """In the pass through frozen layers, on the first batch from a store, and in each evaluation."""
    histories = []
    for tokens_at_once in (None, 32):
        config = settings(
            strategy=strategy, trainable_layers=1, cache_frozen=cache_frozen, per_device_train_batch_size=8,
            per_device_eval_batch_size=8, cache_dir=str(tmp_path / str(tokens_at_once)),
        )  # fmt: skip
        model, groups, *_ = tiny("bert")
        with start_accelerator(config) as accelerator:
            loaders = loaders_of(accelerator, TextRows(24), TextRows(10, seed=1), 8)
            loaders = replace(loaders, tokens_at_once=tokens_at_once)
            calls = Calls(model)
            history = fit(model, choose_strategy(config.strategy), groups, loaders, config, accelerator).history
        histories.append([{name: row[name] for name in ("accuracy", "loss", "train_loss")} for row in history])
        assert max(calls.tokens) == (tokens_at_once or 8 * 8)
    assert [pytest.approx(row, rel=1e-4) for row in histories[0]] == histories[1]


def test_parts_are_as_equal_as_they_can_be_and_keep_their_order() -> None:
    seen: list[int] = []

    def double(part: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        seen.append(len(part["a"]))
        return [part["a"] * 2, part["b"]]

    inputs = {"a": torch.arange(14).view(7, 2), "b": torch.arange(7)}
    doubled, same = in_parts(double, inputs, 3)
    assert seen == [3, 2, 2]
    assert (doubled.tolist(), same.tolist()) == ((inputs["a"] * 2).tolist(), inputs["b"].tolist())


def test_only_texts_on_cpus_go_in_parts_unless_the_batch_size_is_given() -> None:
    need = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}
    assert TextConfig.of(**need).training.tokens_at_once("cpu") == 8_192
    assert TextConfig.of(**need).training.tokens_at_once("cuda") is None
    assert TextConfig.of(**need, per_device_eval_batch_size=64).training.tokens_at_once("cpu") is None
    assert VisionConfig.of(**need).training.tokens_at_once("cpu") is None


def test_two_processes_call_a_wrapped_model_equally_often(tmp_path: Path) -> None:
    """In each call a wrapped model may communicate, and would wait for the other process."""
    ended = two_forks(Path(__file__).with_name("long_texts.py"), str(tmp_path))
    assert ended.returncode == 0, ended.output[-3000:]
    first, second = json.loads((tmp_path / "calls.json").read_text())
    assert first == second > 2
    model, *_ = tiny("bert")
    with start_accelerator(settings()) as accelerator:
        alone = predict_split(
            model, loaders_with_lengths(accelerator, longest_first(8), None), "validation", accelerator
        )
    torch.testing.assert_close(load_file(tmp_path / "outputs.safetensors")["outputs"], alone.outputs)
