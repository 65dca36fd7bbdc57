"""What identifies a run: the checkpoint of another run is refused, with the differences."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hf_transfer.errors import UserError
from hf_transfer.models.groups import Group
from hf_transfer.settings import training as settings_of_training
from hf_transfer.strategies.adapters import LowRankAdaptation
from hf_transfer.strategies.freezing import FullFineTuning, LinearProbe, PartialFineTuning, Stage, Strategy
from hf_transfer.targets.classes import Classes
from hf_transfer.training import identity
from hf_transfer.versions import versions
from tests.training.resumed_runs import CASES, STEPS, Case, killed
from tests.training.toy_task import TARGET, HeadAlone, Rows

FULL = CASES["full"]


def refused(tmp_path: Path, **more: Any) -> list[str]:
    """The lines of the error of a run that is not the one of the checkpoint."""
    with pytest.raises(UserError) as caught:
        FULL.run(tmp_path, **more)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("allow", [False, True])
def test_a_checkpoint_of_other_settings_or_data_is_refused(tmp_path: Path, allow: bool) -> None:
    """Also with --allow_mismatch."""
    assert killed(FULL, tmp_path, 9) == -9
    folder = tmp_path / "checkpoints" / "checkpoint-00000008"
    expected, found, do = refused(tmp_path, allow_mismatch=allow, learning_rate=0.5, weight_decay=0.0)
    assert expected == f"Expected: the run that saved {folder}"
    assert found == "Found:    another run (there -> here): learning_rate: 0.001 -> 0.5; weight_decay: 0.05 -> 0.0"
    assert do == "Do this:  resume with the same settings, or start again with --no_resume"
    assert refused(tmp_path, allow_mismatch=allow, rows=Rows(24, seed=5))[1].endswith("(there -> here): other data")


def test_a_checkpoint_of_other_frozen_weights_is_refused(tmp_path: Path) -> None:
    """They are not in the checkpoint, and a pretrained model may change under its name."""
    case = CASES["partial"]
    assert killed(case, tmp_path, 9) == -9
    with pytest.raises(UserError, match="other frozen weights"):
        case.run(tmp_path, seed=1)
    assert case.run(tmp_path).resumed == [8]


class HeadThenAll(FullFineTuning):
    """All parameters, as in full fine-tuning, but the head alone in the first epoch."""

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """See `Strategy.stages`."""
        return [*HeadAlone().stages(groups, 1), *super().stages(groups, epochs - 1)]


class NoDataclass:
    """Full fine-tuning as a user may write it."""

    fresh_weights, head_learning_rate = False, None

    def __init__(self, learning_rate: float) -> None:
        self.learning_rate = learning_rate

    def check(self, model: nn.Module, groups: Sequence[Group]) -> None:
        """Every model can be trained so."""

    def prepare(
        self, model: nn.Module, groups: Sequence[Group], inputs: Any, seed: int
    ) -> tuple[nn.Module, list[Group]]:
        """The model as it is."""
        return model, list(groups)

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """All parameters."""
        return FullFineTuning().stages(groups, epochs)


@pytest.mark.parametrize(
    ("strategy", "other", "difference"),
    [
        (FullFineTuning(), LinearProbe(), "strategy: FullFineTuning() -> LinearProbe(); other stages"),
        (FullFineTuning(), HeadThenAll(), "strategy: FullFineTuning() -> HeadThenAll(); other stages"),
        (
            PartialFineTuning(layers=1), PartialFineTuning(layers=2),
            "strategy: PartialFineTuning(layers=1) -> PartialFineTuning(layers=2); other stages",
        ),
        (
            LowRankAdaptation(rank=2, alpha=4), LowRankAdaptation(rank=2, alpha=9),
            "strategy: LowRankAdaptation(rank=2, alpha=4) -> LowRankAdaptation(rank=2, alpha=9)",
        ),
        (FullFineTuning(), FullFineTuning(learning_rate=0.002), "learning_rate: 0.0001 -> 0.002"),
        (NoDataclass(0.001), NoDataclass(0.002), "learning_rate: 0.001 -> 0.002"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_strategy_is_refused(
    strategy: Strategy, other: Strategy, difference: str, tmp_path: Path
) -> None:
    """With the same settings, as in a Python program that calls `fit` twice; also with --allow_mismatch."""
    first, second = (Case("vit", one, {"learning_rate": None}) for one in (strategy, other))
    expected = first.run(tmp_path).model.state_dict()
    for allow in (False, True):
        with pytest.raises(UserError) as caught:
            second.run(tmp_path, allow_mismatch=allow)
        assert difference in str(caught.value).splitlines()[1]
    resumed = first.run(tmp_path)
    assert resumed.resumed == [STEPS]
    assert all(torch.equal(value, expected[name]) for name, value in resumed.model.state_dict().items())


def test_a_rate_of_the_strategy_that_the_settings_replace_may_change(tmp_path: Path) -> None:
    Case("vit", FullFineTuning()).run(tmp_path)
    assert Case("vit", FullFineTuning(learning_rate=0.5)).run(tmp_path).resumed == [STEPS]


def test_a_checkpoint_of_full_fine_tuning_with_another_default_of_r_drop_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same settings stood for another loss before the default followed the number of texts."""
    case = Case("bert", FullFineTuning(), {"rdrop_alpha": None, "strategy": "full"})
    case.run(tmp_path)
    assert case.run(tmp_path).resumed
    monkeypatch.setattr(settings_of_training, "SAMPLES_WITHOUT_RDROP", 1)
    with pytest.raises(UserError, match=r"rdrop_alpha: 1\.0 -> 0\.0"):
        case.run(tmp_path, allow_mismatch=True)
    # One that is given is the same everywhere.
    given = Case("bert", FullFineTuning(), {"rdrop_alpha": 1.0, "strategy": "full"})
    given.run(tmp_path / "given")
    monkeypatch.undo()
    assert given.run(tmp_path / "given").resumed


def test_a_checkpoint_of_another_target_is_refused(tmp_path: Path) -> None:
    """The same class numbers with other names are another task."""
    FULL.run(tmp_path)
    renamed = Classes(TARGET.label_names[::-1])
    assert refused(tmp_path, target=renamed)[1].endswith("(there -> here): other target")
    assert FULL.run(tmp_path).resumed == [STEPS]


def test_a_checkpoint_of_another_version_of_a_package_is_refused_unless_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of hf_transfer itself, and of tokenizers."""
    FULL.run(tmp_path)
    recorded = versions()
    newer = {**recorded, "hf-transfer-learning": "99", "tokenizers": "98"}
    monkeypatch.setattr(identity, "versions", lambda: newer)
    changed = [f"{name}: {recorded[name]} -> {newer[name]}" for name in recorded if recorded[name] != newer[name]]
    assert len(changed) == 2
    assert refused(tmp_path)[1].endswith(f"(there -> here): {'; '.join(changed)}")
    assert FULL.run(tmp_path, allow_mismatch=True).resumed == [STEPS]


def test_other_versions_or_threads_are_refused_unless_allowed(tmp_path: Path) -> None:
    assert killed(FULL, tmp_path, 9) == -9
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        _, found, do = refused(tmp_path)
        assert found == f"Found:    another run (there -> here): threads: {threads} -> {threads + 1}"
        assert do.startswith(
            "Do this:  resume with the same versions and machine, or add --allow_mismatch: results may"
        )
        assert FULL.run(tmp_path, allow_mismatch=True).resumed == [8]
    finally:
        torch.set_num_threads(threads)
