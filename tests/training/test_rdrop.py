"""R-Drop: each text passes through the model twice, and the outputs with different dropout must agree."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hf_transfer.errors import UserError
from hf_transfer.modalities.image import ImageModality
from hf_transfer.modalities.text import TextModality
from hf_transfer.settings.run import TextConfig
from hf_transfer.strategies.choice import Prepared
from hf_transfer.strategies.freezing import FullFineTuning, PartialFineTuning, Strategy
from hf_transfer.training.batch_size import find_batch_sizes
from hf_transfer.training.devices import start_accelerator
from hf_transfer.training.objective import Objective
from hf_transfer.training.progress import Fit
from tests.tiny_models import state
from tests.training.toy_task import TARGET, loaders_of, rows_for, settings, text_settings, tiny, train
from tests.training.trials import refusing

COUNTED = torch.tensor([True, True, False, True])


def some_logits(seed: int) -> Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def divergence(left: Tensor, right: Tensor) -> Tensor:
    """KL(left, right) of each row, computed from probabilities."""
    p, q = left.softmax(1), right.softmax(1)
    return (p * (p / q).log()).sum(1)


def test_the_disagreement_of_two_passes_is_the_sum_of_the_means_of_both_divergences_without_masked_samples() -> None:
    first, second = some_logits(1), some_logits(2)
    expected = ((divergence(first, second) + divergence(second, first)) / 2)[COUNTED].sum()
    actual = TARGET.disagreement(torch.cat([first, second]), torch.cat([COUNTED, COUNTED]))
    torch.testing.assert_close(actual, expected)


def test_if_every_sample_is_masked_the_disagreement_is_zero() -> None:
    logits = torch.cat([some_logits(1), some_logits(2)]).requires_grad_()
    actual = TARGET.disagreement(logits, torch.zeros(8, dtype=torch.bool))
    actual.backward()
    assert actual == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros(8, 5, dtype=torch.float64))


def test_a_batch_is_repeated_only_with_rdrop() -> None:
    batch = {"input_ids": torch.arange(6).reshape(2, 3), "target": torch.tensor([4, 2]), "index": torch.tensor([7, 9])}
    assert Objective(TARGET).repeated(batch) is batch
    repeated = Objective(TARGET, rdrop_alpha=0.5).repeated(batch)
    assert repeated["input_ids"].tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2], [3, 4, 5]]
    assert repeated["target"].tolist() == [4, 2, 4, 2]
    assert repeated["index"].tolist() == [7, 9, 7, 9]


def trained(strategy: Strategy | None = None, rows: int = 12, **more: Any) -> Fit:
    model, groups, _ = tiny("bert")
    training, validation = rows_for("bert", rows), rows_for("bert", 10, seed=1)
    return train(model, groups, strategy or FullFineTuning(), text_settings(**more), training, validation)


def test_the_loss_of_a_step_is_that_of_two_passes_with_different_dropout() -> None:
    """Against a forward pass in the test, whose dropout draws the same numbers; an epoch counts each text once."""
    rows, (model, *_) = rows_for("bert", 12), tiny("bert")
    order = first_batch(rows)
    torch.manual_seed(0)
    model.train()
    twice = {name: torch.cat([column[order], column[order]]) for name, column in rows.inputs.items()}
    logits = model(**twice).logits
    first, second = logits.chunk(2)
    labels = rows.labels[order]
    assert not torch.allclose(first, second, atol=1e-3)
    expected = torch.nn.functional.cross_entropy(logits, torch.cat([labels, labels]))
    expected = expected + 3.0 * (divergence(first, second) + divergence(second, first)).mean() / 2
    (row,) = trained(rdrop_alpha=3.0, num_train_epochs=1, per_device_train_batch_size=12).history
    assert row["train_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert row["samples_per_second"] * row["seconds"] == pytest.approx(12)


def first_batch(rows: Any) -> Tensor:
    """The positions of the first batch of 12 in the first epoch."""
    with start_accelerator(text_settings()) as accelerator:
        batches = loaders_of(accelerator, rows, rows, 12).train
        batches.set_epoch(0)
        positions: Tensor = next(iter(batches))["index"]
        return positions


def test_both_passes_start_from_one_stored_output(tmp_path: Path) -> None:
    """The stored outputs of the frozen blocks are used for both passes, with the same result as without a store."""
    fits = [
        trained(
            PartialFineTuning(layers=1), rdrop_alpha=1.0, cache_frozen=cache, cache_dir=str(tmp_path),
            output_dir=str(tmp_path),
        )
        for cache in ("on", "off")
    ]  # fmt: skip
    assert fits[0].frozen_seconds > fits[1].frozen_seconds == 0
    stored, live = (state(fitted.model) for fitted in fits)
    for name, value in live.items():
        torch.testing.assert_close(stored[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("strategy", "given", "dropout", "samples", "expected"),
    [
        ("full", None, 0.1, 499, 1.0), ("full", None, 0.1, 500, 0.0), ("full", None, 0.0, 12, 0.0),
        ("full", 0.0, 0.1, 12, 0.0), ("full", 0.3, 0.1, 12, 0.3), ("full", 0.3, 0.1, 10_000, 0.3),
        ("lp_ft", None, 0.1, 12, 0.0), ("scratch", None, 0.1, 499, 1.0), ("scratch", None, 0.1, 500, 0.0),
        ("scratch", None, 0.0, 12, 0.0), ("scratch", 0.0, 0.1, 12, 0.0), ("partial", None, 0.1, 12, 0.0),
        ("lora", 2.0, 0.1, 12, 2.0),
    ],
)  # fmt: skip
def test_full_fine_tuning_and_its_baseline_use_rdrop_for_few_texts_unless_the_settings_say_otherwise(
    strategy: str, given: float | None, dropout: float, samples: int, expected: float
) -> None:
    model, *_ = tiny("bert", hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    config = text_settings(strategy=strategy, rdrop_alpha=given)
    assert TextModality().regularisation(config, model, TARGET, samples).rdrop_alpha == expected


def test_images_pass_once() -> None:
    model, *_ = tiny("vit", hidden_dropout_prob=0.2)
    assert ImageModality().regularisation(settings(strategy="full"), model, TARGET, 12).rdrop_alpha == 0


def test_rdrop_is_refused_for_a_model_without_dropout() -> None:
    model, *_ = tiny("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    with pytest.raises(UserError) as error:
        TextModality().regularisation(text_settings(rdrop_alpha=1.0), model, TARGET, 12)
    assert str(error.value) == (
        "Expected: for --rdrop_alpha a model with dropout, so that two passes differ\n"
        "Found:    none in m\nDo this:  leave --rdrop_alpha out"
    )


@pytest.mark.parametrize(("alpha", "size"), [(0.0, 8), (1.0, 4)])
def test_with_rdrop_a_batch_must_fit_twice(tmp_path: Path, alpha: float, size: int) -> None:
    config: TextConfig = text_settings(rdrop_alpha=alpha, output_dir=str(tmp_path), per_device_train_batch_size=8)
    model, groups, _ = tiny("bert")
    refusing(model, train=8, evaluation=64)
    with start_accelerator(config) as accelerator:
        loaders = loaders_of(accelerator, rows_for("bert", 40), rows_for("bert", 10, seed=1), 4)
        prepared = Prepared(model, groups, [], {"": []})
        chosen, _ = find_batch_sizes(prepared, FullFineTuning(), loaders, config, accelerator, twice=alpha > 0)
    training = chosen.training
    assert training.per_device_train_batch_size == size
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 8


def test_a_larger_head_depends_on_its_seed_and_changes_nothing_else() -> None:
    heads = []
    for seed in (1, 1, 2):
        model, groups, inputs = tiny("bert")
        before = state(model)
        prepared, same = FullFineTuning(larger_head=True).prepare(model, groups, inputs, seed)
        assert prepared is model
        assert same == groups
        moved = [name for name, value in state(model).items() if not torch.equal(value, before[name])]
        assert moved == ["classifier.weight"]
        heads.append(model.get_parameter("classifier.weight"))
    outputs, inputs_of_head = heads[0].shape
    assert heads[0].std().item() == pytest.approx(np.sqrt(2 / (outputs + inputs_of_head)), rel=0.15)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
