"""Stored features of a solved head: another solution needs no forward pass, and wrong features are never used."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hf_transfer.errors import UserError
from hf_transfer.frozen import store
from hf_transfer.frozen.probe import solve_head
from hf_transfer.targets.target import Metrics
from hf_transfer.training.devices import start_accelerator
from tests.frozen.solved_heads import HEADS, options_of, passes_of
from tests.training.toy_task import Rows, loaders_of, rows_for, settings, tiny


@dataclass
class Stored:
    """A solved head, and the number of forward passes."""

    weight: Tensor
    bias: Tensor
    row: Metrics
    passes: int

    def same(self, other: "Stored") -> bool:
        """Equal bit for bit, and so are the logged numbers except for seconds."""
        logged = [{key: value for key, value in one.row.items() if "second" not in key} for one in (self, other)]
        return torch.equal(self.weight, other.weight) and torch.equal(self.bias, other.bias) and logged[0] == logged[1]


def solve_stored(name: str, *, edit: Any = None, rows: Rows | None = None, **more: Any) -> Stored:
    """Solve, and count the forward passes of the backbone."""
    model, _, _ = tiny(name)
    if edit is not None:
        edit(model)
    runs: list[int] = []
    model.register_forward_pre_hook(lambda *_: runs.append(1))
    config = settings(**more)
    with start_accelerator(config) as accelerator:
        loaders = loaders_of(accelerator, rows or rows_for(name, 40), rows_for(name, 20, seed=1), 4)
        passes, options = passes_of(loaders, accelerator, config), options_of(loaders, config)
        row = solve_head(model, HEADS[name], passes, options).row
    head = model.get_submodule(HEADS[name])
    assert isinstance(head, nn.Linear)
    return Stored(head.weight.detach(), head.bias.detach(), row, len(runs))


def other_head(model: nn.Module) -> None:
    nn.init.zeros_(model.get_parameter("classifier.weight"))


def other_norm(model: nn.Module) -> None:
    nn.init.constant_(model.get_parameter("vit.layernorm.bias"), 0.5)


@pytest.mark.parametrize("name", ["vit", "bert"])
@pytest.mark.parametrize("kept", ["on", "auto"])
def test_a_second_solution_needs_no_forward_pass_and_is_equal_bit_for_bit(name: str, kept: str, tmp_path: Path) -> None:
    """Whatever the weights of the head were before: features do not depend on them."""
    first, second = (
        solve_stored(name, edit=edit, cache_frozen=kept, cache_dir=str(tmp_path)) for edit in (None, other_head)
    )
    assert (first.passes > 0, second.passes) == (True, 0)
    assert second.same(first)
    assert len(list((tmp_path / "frozen").iterdir())) == 2


def test_with_another_backbone_or_other_samples_features_are_computed_again(tmp_path: Path) -> None:
    kept: dict[str, Any] = {"cache_frozen": "on", "cache_dir": str(tmp_path)}
    first = solve_stored("vit", **kept)
    others = [
        solve_stored("vit", edit=other_norm, **kept),
        solve_stored("vit", rows=Rows(40, seed=7), **kept),
        solve_stored("vit", cache_dtype="bfloat16", **kept),
    ]
    assert all(other.passes > 0 and not other.same(first) for other in others)
    # Only the second of them shares a store with the first solution: that of validation.
    assert [other.passes < first.passes for other in others] == [False, True, False]
    assert len(list((tmp_path / "frozen").iterdir())) == 2 + 2 + 1 + 2


def test_only_damaged_and_missing_chunks_are_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "CHUNK_SAMPLES", 8)
    kept: dict[str, Any] = {"cache_frozen": "on", "cache_dir": str(tmp_path), "per_device_eval_batch_size": 8}
    first = solve_stored("vit", **kept)
    assert first.passes == 5 + 3
    train, _ = sorted((tmp_path / "frozen").iterdir(), key=lambda folder: -len(list(folder.iterdir())))
    (train / "000003.safetensors").unlink()
    damaged = train / "000001.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    second = solve_stored("vit", **kept)
    assert second.passes == 2
    assert second.same(first)


def test_features_that_are_not_to_be_kept_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the store switched off, or a folder that cannot be written to: the head is the same, and no file is left."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "file").touch()
    kept = solve_stored("vit", cache_frozen="on", cache_dir=str(tmp_path / "kept"))
    off = solve_stored("vit", cache_frozen="off", cache_dir=str(tmp_path / "off"))
    nowhere = solve_stored("vit", cache_frozen="auto", cache_dir=str(tmp_path / "file" / "cache"))
    assert off.same(kept)
    assert nowhere.same(kept)
    assert off.passes == nowhere.passes == kept.passes
    assert list((tmp_path / "temporary").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "kept", "temporary"]


def test_features_are_not_read_after_they_were_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    """With several processes, only the first could still read them: it has them mapped into memory."""
    chunk = store.Store.chunk

    def present(self: store.Store, number: int) -> list[Tensor]:
        assert self.folder.is_dir()
        return chunk(self, number)

    monkeypatch.setattr(store.Store, "chunk", present)
    assert solve_stored("vit", cache_frozen="off").row["samples_per_second"] > 0


def test_features_that_must_be_kept_but_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"(?s){tmp_path / 'file'}.*--cache_dir"):
        solve_stored("vit", cache_frozen="on", cache_dir=str(tmp_path / "file" / "cache"))
