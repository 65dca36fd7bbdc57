"""Predictions by heads that were solved without a sample: also without its copies and its group, in both strategies."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn

from hf_transfer.data.batches import Loaders
from hf_transfer.data.folds import Folds
from hf_transfer.data.groups import Units, key_of, units_of
from hf_transfer.data.splits import Split
from hf_transfer.frozen import probe
from hf_transfer.frozen.out_of_fold import out_of_fold
from hf_transfer.frozen.solvers import SOLVERS, Problem
from hf_transfer.frozen.standardised import Blocks, Solution
from hf_transfer.strategies.deep_probe import DeepProbe
from hf_transfer.strategies.freezing import LinearProbe
from hf_transfer.targets.predictions import Predictions
from hf_transfer.targets.target import Target
from hf_transfer.training.devices import start_accelerator
from tests.frozen.solved_heads import options_of, passes_of
from tests.frozen.target_rows import LABELS, NUMBERS, label_rows, number_rows
from tests.tapped_models import tapped
from tests.training.toy_task import TARGET, Rows, loaders_of, settings

SIZE, ONES, REGULARISATION = 40, 20, 0.01
STRATEGIES = pytest.mark.parametrize("strategy", [LinearProbe(), DeepProbe()], ids=["linear_probe", "deep_probe"])


@dataclass
class Seen:
    """What each call of `out_of_fold` predicted, and the features of the samples that each head was solved on."""

    predictions: list[Predictions]
    samples: list[set[bytes]]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Heads have one regularisation, and what they are solved on is recorded."""
    record = Seen([], [])

    def recorded(*arguments: Any, **more: Any) -> Predictions | None:
        predictions = out_of_fold(*arguments, **more)
        if predictions is not None:
            record.predictions.append(predictions)
        return predictions

    class Fixed:
        """A problem whose path has one solution."""

        def __init__(self, make: Any, blocks: Blocks, *arguments: Any, **more: Any) -> None:
            record.samples.append({row.tobytes() for features, _ in blocks() for row in features.numpy()})
            self._problem: Problem = make(blocks, *arguments, **more)

        def path(self, *, rough: bool = False) -> Iterator[Solution]:
            (solution,) = (
                one for one in self._problem.path(rough=rough) if one.regularisation == pytest.approx(REGULARISATION)
            )
            yield solution

        def sharpened(self, solution: Solution) -> Solution:
            return self._problem.sharpened(solution)

        def near(self, solution: Solution) -> Solution:
            return self._problem.near(solution)

    monkeypatch.setattr(probe, "out_of_fold", recorded)
    for name, make in SOLVERS.items():
        monkeypatch.setitem(SOLVERS, name, partial(Fixed, make))
    return record


def solve(
    strategy: LinearProbe, rows: Rows, target: Target, units: Callable[[Split], Units] | None = None
) -> probe.SolvedHead:
    """Solve the head of a tiny ViT as the strategy has it."""
    one = tapped("vit")
    torch.manual_seed(0)
    one.model.set_submodule("classifier", nn.Linear(24, len(target.names)))
    model, _ = strategy.prepare(one.model, one.groups, one.inputs, 0)
    make: Any = label_rows if target is LABELS else number_rows if target is NUMBERS else Rows
    config = settings()
    with start_accelerator(config) as accelerator:
        loaders = replace(loaders_of(accelerator, rows, make(20, seed=1), 4, target=target), units_of=units)
        return probe.solve_head(
            model, "classifier", passes_of(loaders, accelerator, config), options_of(loaders, config)
        )


def with_a_copy_of_each(rows: Rows) -> Rows:
    """The second half of the samples has the pixels of the first; labels are as they were."""
    pixels = rows.pixels.clone()
    pixels[SIZE // 2 :] = pixels[: SIZE // 2]
    rows.inputs = {"pixel_values": pixels}
    return rows


def by_pairs(split: Split) -> Units:
    """A sample and its copy are one unit."""
    keys = [key_of(str(row % (SIZE // 2)).encode()) for row in split.rows.tolist()]
    return units_of([np.asarray(keys, dtype=np.uint64)])


@STRATEGIES
@pytest.mark.parametrize(("target", "make"), [(TARGET, Rows), (LABELS, label_rows), (NUMBERS, number_rows)])
def test_no_head_predicts_a_sample_whose_copy_it_was_solved_on(
    strategy: LinearProbe, target: Target, make: Any, seen: Seen
) -> None:
    """Each different sample is missing in the training of just one head of a combination, with its copy."""
    rows = with_a_copy_of_each(make(SIZE))
    solve(strategy, rows, target, by_pairs)
    if target is TARGET and isinstance(strategy, DeepProbe):
        assert len(seen.predictions) == len(tapped("vit").blocks) + 2
    elif target is TARGET:
        # A head for classes that has nothing to choose needs no folds.
        assert seen.predictions == []
        return
    whole, *others = (len(samples) for samples in seen.samples)
    assert whole == ONES
    in_folds = [count for count in others if count < whole]
    assert 4 * len(seen.predictions) <= len(in_folds) <= 5 * len(seen.predictions)
    assert sum(whole - count for count in in_folds) == whole * len(seen.predictions)


@STRATEGIES
@pytest.mark.parametrize(("target", "make"), [(TARGET, Rows), (LABELS, label_rows), (NUMBERS, number_rows)])
def test_a_wrong_label_leaves_the_predictions_for_its_own_sample_as_they_were(
    strategy: LinearProbe, target: Target, make: Any, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, for each combination of taps; those for other samples change."""
    row, numbers = 11, np.random.default_rng(3).permutation(SIZE) % 4
    monkeypatch.setattr(Loaders, "folds", lambda *_: Folds(numbers[None], np.arange(SIZE)))
    first, changed = make(SIZE), make(SIZE)
    # It shares memory with the targets of the split.
    values: npt.NDArray[Any] = changed.labels.numpy()
    values[row] = (values[row] + 1) % 5 if target is TARGET else 1 - values[row] if target is LABELS else 900.0
    for rows in (first, changed):
        solve(strategy, rows, target)
    count, rest = divmod(len(seen.predictions), 2)
    assert (rest, count > 0) == (0, target is not TARGET or isinstance(strategy, DeepProbe))
    for one, other in zip(seen.predictions[:count], seen.predictions[count:], strict=True):
        assert torch.equal(one.outputs[row], other.outputs[row]) is (target is not NUMBERS)
        assert torch.allclose(one.outputs[row], other.outputs[row], rtol=1e-9)
        assert not torch.equal(one.outputs, other.outputs)


def test_numbers_without_copies_are_left_out_one_by_one(seen: Seen) -> None:
    """The exact outputs without each sample need no further head."""
    solve(LinearProbe(), number_rows(SIZE), NUMBERS)
    assert len(seen.samples) == 1
    assert len(seen.predictions) == 1


def test_samples_that_are_all_copies_of_each_other_are_not_divided(seen: Seen) -> None:
    """The head is then chosen and calibrated on validation alone."""
    solve(
        DeepProbe(),
        label_rows(SIZE),
        LABELS,
        lambda split: Units(np.zeros(len(split), dtype=np.int64), by_pairs(split).keys[:1]),
    )
    assert seen.predictions == []


def regularisation_of_noise(units: Callable[[Split], Units] | None) -> float:
    """Numbers that no feature tells, each of which a sample shares with its copy."""
    rows = with_a_copy_of_each(number_rows(SIZE))
    values: npt.NDArray[Any] = rows.labels.numpy()
    half = np.random.default_rng(5).normal(100, 20, size=(SIZE // 2, 2))
    values[:] = np.concatenate([half, half])
    return solve(LinearProbe(), rows, NUMBERS, units).row["regularisation"]


def test_copies_do_not_speak_for_a_weaker_regularisation() -> None:
    """Left out alone, a sample is predicted by its copy; by validation, a head that knows nothing is better."""
    assert regularisation_of_noise(by_pairs) > 10 * regularisation_of_noise(None)
