"""FSDP: two processes with sharded weights train like two processes with whole models."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils import DistributedType, DynamoBackend
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

from hf_transfer.errors import UserError
from hf_transfer.settings.training import TrainingSettings
from hf_transfer.training.identity import accelerator_name
from hf_transfer.training.sharding import sharded_copy, start_sharding
from tests.conftest import REPOSITORY
from tests.ports import held_port
from tests.training.launched import two_forks
from tests.training.sharded_runs import COMPARED, INTERRUPTED
from tests.training.toy_task import settings, tiny

pytestmark = pytest.mark.slow

SCRIPT = str(Path(__file__).with_name("sharded_runs.py"))
CONFIG = "recipes/configs/accelerate/fsdp.yaml"
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the results of `sharded_runs.py`."""
    folder = tmp_path_factory.mktemp("sharded")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in FSDP.items():
            patch.setenv(name, value)
        ended = two_forks(SCRIPT, str(folder))
    assert ended.returncode == 0, ended.output[-3000:]
    return folder


def test_each_process_holds_its_part(sharded: Path) -> None:
    """Accelerate alone would not shard on CPUs, and the tests below would pass all the same."""
    model, groups, _ = tiny("vit")
    total = sum(parameter.numel() for parameter in model.parameters())
    parts = json.loads((sharded / "parts.json").read_text())
    assert len(parts) == 2
    assert sum(process["numbers"] for process in parts) == total
    assert all(0.4 * total < process["numbers"] < 0.6 * total for process in parts)
    blocks = sum(group.is_block for group in groups)
    assert [process["units"] for process in parts] == [blocks + 1] * 2


@pytest.mark.parametrize("name", COMPARED)
def test_losses_and_weights_are_those_of_whole_models(sharded: Path, name: str) -> None:
    """Also if moving averages are evaluated, and if each process has statistics of its own."""
    histories = [json.loads((folder / name / "history.json").read_text()) for folder in (sharded, sharded / "whole")]
    assert len(histories[0]) == len(histories[1]) > 1
    for row, other in zip(*histories, strict=True):
        for key in ("train_loss", "loss", "accuracy", "learning_rate"):
            assert row[key] == pytest.approx(other[key], rel=1e-5, abs=1e-7), key
    weights, others = (load_file(folder / name / "weights.safetensors") for folder in (sharded, sharded / "whole"))
    assert weights.keys() == others.keys()
    for key, value in weights.items():
        assert torch.allclose(value, others[key], rtol=0, atol=1e-4), key


@pytest.mark.parametrize("name", INTERRUPTED)
def test_an_interrupted_run_resumes_to_the_same_bytes(sharded: Path, name: str) -> None:
    out = sharded / f"{name}-resumed"
    assert (out / "weights.safetensors").read_bytes() == (sharded / name / "weights.safetensors").read_bytes()
    saved = sorted((out / "checkpoints").glob("checkpoint-*"))
    assert saved
    assert all({path.suffix for path in folder.iterdir()} == {".safetensors", ".json"} for folder in saved)


@pytest.mark.parametrize(
    ("name", "kind"), [("full", AutoModelForImageClassification), ("gradual", AutoModelForSequenceClassification)]
)
def test_the_saved_model_is_a_plain_transformers_model(sharded: Path, name: str, kind: Any) -> None:
    loaded = kind.from_pretrained(sharded / name / "model").state_dict()
    weights = load_file(sharded / name / "weights.safetensors")
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in loaded.items())


def test_the_recipe_runs_with_the_configuration_file(tmp_path: Path) -> None:
    """As documented, but on CPUs; frozen layers run on the whole model, and their outputs are stored."""
    flags = {
        "model_name_or_path": "sample:vit-glyphs",
        "dataset_name": "sample:digits",
        "strategy": "partial",
        "bf16": True,
        "cache_frozen": "on",
        "max_train_samples_per_class": 2,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "output_dir": tmp_path / "out",
        "cache_dir": tmp_path / "cache",
    }
    command = [str(Path(sys.executable).parent / "accelerate"), "launch", "--config_file", CONFIG]
    with held_port() as port:
        ended = subprocess.run(
            [
                *command, f"--main_process_port={port}", "recipes/vision.py",
                *(f"--{name}={value}" for name, value in flags.items()),
            ],
            cwd=REPOSITORY,
            env={**os.environ, "ACCELERATE_USE_CPU": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "Weights, gradients and moments are sharded among 2 processes." in ended.stdout
    assert json.loads((tmp_path / "out" / "results.json").read_text())["processes"] == 2
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "out" / "model").config.num_labels == 10


def an_accelerator(kind: DistributedType, **more: Any) -> Any:
    """Like an accelerator after `accelerate launch` with FSDP; the plugin reads the environment."""
    plugin = FullyShardedDataParallelPlugin()
    dynamo = SimpleNamespace(backend=more.pop("backend", DynamoBackend.NO))
    state = SimpleNamespace(fsdp_plugin=plugin, dynamo_plugin=dynamo)
    values = {"distributed_type": kind, "state": state, "parallelism_config": None, "num_processes": 2, "print": print}
    return SimpleNamespace(**(values | more))


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("FSDP_VERSION", "1", "fsdp_version: 1"),
        ("FSDP_RESHARD_AFTER_FORWARD", "false", "fsdp_reshard_after_forward: false"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "fsdp_cpu_ram_efficient_loading: true"),
        ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params: true"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "fsdp_activation_checkpointing: true (--gradient_checkpointing"),
        ("FSDP_IGNORED_MODULES", "classifier", "fsdp_ignored_modules"),
    ],
)
def test_other_options_of_fsdp_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str, found: str) -> None:
    monkeypatch.setenv("FSDP_VERSION", "2")
    start_sharding(settings().training, an_accelerator(DistributedType.FSDP))
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as refusal:
        start_sharding(settings().training, an_accelerator(DistributedType.FSDP))
    assert f"Found:    {found}" in str(refusal.value)
    assert "recipes/configs/accelerate/fsdp.yaml" in str(refusal.value)


@pytest.mark.parametrize(
    ("training", "more", "found"),
    [
        (settings(auto_batch_size=True).training, {}, "--auto_batch_size"),
        (settings(fp16=True).training, {}, "--fp16 (--bf16 works)"),
        (settings(torch_compile=True).training, {}, "--torch_compile"),
        (settings().training, {"parallelism_config": object()}, "a parallelism_config"),
        (settings().training, {"backend": DynamoBackend.INDUCTOR}, "a dynamo_backend"),
    ],
)
def test_settings_that_fsdp_does_not_support_are_refused(
    monkeypatch: pytest.MonkeyPatch, training: TrainingSettings, more: dict[str, Any], found: str
) -> None:
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(UserError, match="with FSDP only settings that are tested") as refusal:
        start_sharding(training, an_accelerator(DistributedType.FSDP, **more))
    assert f"Found:    {found}\n" in str(refusal.value)


@pytest.mark.parametrize("kind", [DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM])
def test_other_ways_to_shard_weights_are_refused(kind: DistributedType) -> None:
    with pytest.raises(UserError, match=f"{kind.value}, which is not supported"):
        start_sharding(settings().training, an_accelerator(kind))


def test_a_parameter_that_cannot_be_divided_is_refused_by_name() -> None:
    model = nn.Module()
    model.register_parameter("logit_scale", nn.Parameter(torch.tensor(1.0)))
    with pytest.raises(UserError, match="Found:    logit_scale, a single number"):
        sharded_copy(model, [], an_accelerator(DistributedType.FSDP))


def test_sharding_is_part_of_the_identity_of_a_run() -> None:
    """Sums over parts round differently: resuming with it needs --allow_mismatch."""
    cpu = torch.device("cpu")
    names = [
        accelerator_name(an_accelerator(kind, device=cpu)) for kind in (DistributedType.MULTI_CPU, DistributedType.FSDP)
    ]
    assert names == ["none", "none, sharded weights"]
