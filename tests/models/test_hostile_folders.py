"""Folders of models that want to run code: it is never run."""

import json
import os
import pickle  # noqa: TID251 (to show that it is never read)
from pathlib import Path

import pytest
import torch

from hf_transfer.config import UserError
from hf_transfer.models.pretrained import Checkpoint
from tests.tiny_models import tiny_model
from tests.tiny_text_models import save_text_checkpoint

LABELS = ["a", "b"]


class Payload:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """What the payload makes."""
    return tmp_path / "ran"


def with_pickle(folder: Path, ran: Path) -> Path:
    """A saved model whose weights are only to be had as a pickle."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Payload(ran)}))
    return folder


def refused(load: object) -> str:
    assert callable(load)
    with pytest.raises(UserError) as caught:
        load()
    return str(caught.value)


def test_the_payload_of_these_tests_works(ran: Path) -> None:
    pickle.loads(pickle.dumps(Payload(ran)))  # noqa: S301
    assert ran.exists()


@pytest.mark.parametrize("finished", [False, True])
def test_a_pickle_in_the_place_of_weights_is_refused_and_not_run(finished: bool, tmp_path: Path, ran: Path) -> None:
    """Mutation: hf_transfer/models/pretrained.py: "if "use_safetensors=True" in str(error) or" -> "if False and" """
    tiny_model("vit", num_labels=2).save_pretrained(tmp_path / "m")
    checkpoint = Checkpoint(str(with_pickle(tmp_path / "m", ran)))
    said = refused(
        checkpoint.finished_classifier
        if finished
        else lambda: checkpoint.classifier(LABELS, seed=0, fresh_weights=False)
    )
    assert said.splitlines() == [
        f"Expected: weights in safetensors in {tmp_path / 'm'}",
        "Found:    only pickles (pytorch_model.bin), which can run any code when they are read",
        "Do this:  where you trust them, convert them with transformers: load the model and save_pretrained it",
    ]
    assert not ran.exists()


def test_a_text_model_with_another_pooling_reads_no_pickle_either(tmp_path: Path, ran: Path) -> None:
    """Mutation: hf_transfer/models/pooling.py: ""use_safetensors": True," -> "" """
    folder = with_pickle(save_text_checkpoint(tmp_path / "m", "bert"), ran)
    torch.save({"weight": torch.zeros(1)}, folder / "pytorch_model.bin")  # noqa: TID251 (the same)
    checkpoint = Checkpoint(str(folder), task="text-classification", pooling="mean")
    assert "weights in safetensors" in refused(lambda: checkpoint.classifier(LABELS, seed=0, fresh_weights=False))


def test_a_pickle_beside_weights_is_not_looked_at(tmp_path: Path, ran: Path) -> None:
    tiny_model("vit", num_labels=2).save_pretrained(tmp_path / "m")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth"):
        (tmp_path / "m" / name).write_bytes(pickle.dumps(Payload(ran)))
    Checkpoint(str(tmp_path / "m")).classifier(LABELS, seed=0, fresh_weights=False)
    assert not ran.exists()


def test_code_beside_a_model_is_not_run(tmp_path: Path, ran: Path) -> None:
    """Whatever its config says of it."""
    tiny_model("vit", num_labels=2).save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    settings = json.loads(path.read_text())
    settings |= {"auto_map": {name: f"evil.{name}" for name in ("AutoConfig", "AutoModelForImageClassification")}}
    path.write_text(json.dumps(settings))
    (tmp_path / "m" / "evil.py").write_text(f"import os\nos.mkdir({str(ran)!r})\n")
    Checkpoint(str(tmp_path / "m")).classifier(LABELS, seed=0, fresh_weights=False)
    settings["model_type"] = "evil"
    path.write_text(json.dumps(settings))
    assert "Expected:" in refused(lambda: Checkpoint(str(tmp_path / "m")))
    assert not ran.exists()


def test_a_kernel_that_a_config_asks_for_is_not_fetched(tmp_path: Path) -> None:
    """CVE-2026-4372: an attention implementation named in a config led to foreign code."""
    tiny_model("vit", num_labels=2).save_pretrained(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_attn_implementation_internal": "evil/kernel"}))
    model = Checkpoint(str(tmp_path / "m")).classifier(LABELS, seed=0, fresh_weights=False)
    assert model.config._attn_implementation in ("sdpa", "eager")
