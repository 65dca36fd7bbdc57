"""With `transformers.Trainer` exactly the parameters of the strategy's stages learn."""

import copy
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from transformers import Trainer

from hf_transfer.errors import UserError
from hf_transfer.models.groups import Group
from hf_transfer.strategies.freezing import GradualUnfreezing, LinearProbeThenFineTuning, Stage, Strategy
from hf_transfer.training.trainer_callback import prepare_for_trainer
from tests.tiny_models import CLASSES, logits, state, tiny_model
from tests.training.launched import two_forks
from tests.training.trainer_run import (
    BATCH,
    STEPS,
    STRATEGIES,
    Batches,
    CutShort,
    Epochs,
    Rows,
    Trainable,
    arguments,
    batch_of,
    expected_to_move,
    model_of,
    moved,
    parts_of,
    trainer_for,
)

NAMES = ("vit", "resnet_basic", "bert")


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", NAMES)
def test_exactly_the_parameters_of_the_stage_and_their_statistics_move_in_each_epoch(
    tmp_path: Path, name: str, strategy: str
) -> None:
    """With weight decay and Trainer's `train()` in every step; a head that our loop would solve is trained."""
    trainer, _, watch = trainer_for(name, STRATEGIES[strategy], arguments(tmp_path))
    trainer.train()
    assert len(watch.weights) == 4
    keys = list(watch.weights[0])
    if name == "resnet_basic":
        assert sum(key.endswith(("running_mean", "running_var", "num_batches_tracked")) for key in keys) >= 15
    assert moved(watch.weights) == expected_to_move(name, strategy, keys)


def test_accumulated_gradients_do_not_reach_frozen_parameters(tmp_path: Path) -> None:
    args = arguments(tmp_path, gradient_accumulation_steps=2, max_grad_norm=0.0)
    trainer, _, watch = trainer_for("resnet_basic", STRATEGIES["gradual"], args)
    trainer.train()
    assert moved(watch.weights) == expected_to_move("resnet_basic", "gradual", list(watch.weights[0]))


@pytest.mark.parametrize("name", NAMES)
def test_moments_start_when_a_group_becomes_trainable(tmp_path: Path, name: str) -> None:
    trainer, prepared, watch = trainer_for(name, STRATEGIES["gradual"], arguments(tmp_path))
    trainer.train()
    first, second, third = expected_to_move(name, "gradual", list(watch.weights[0]))
    steps = {
        key: int(prepared.optimizer.state[parameter]["step"])
        for key, parameter in prepared.model.named_parameters()
        if parameter.requires_grad
    }
    assert set(steps) == {key for key, _ in prepared.model.named_parameters()}
    for key, taken in steps.items():
        assert taken == STEPS * (3 if key in first else 2 if key in second else 1), key
    assert third - second
    assert second - first


@pytest.mark.parametrize("stop", [STEPS, STEPS + 3], ids=["after_an_epoch", "within_an_epoch"])
@pytest.mark.parametrize(
    ("name", "strategy"),
    [("vit", "gradual"), ("resnet_basic", "gradual"), ("bert", "gradual"), ("vit", "lora"), ("bert", "lora")],
)
def test_a_resumed_training_equals_the_uninterrupted_one(tmp_path: Path, name: str, strategy: str, stop: int) -> None:
    """To the bit, with dropout; also for a ViT, whose checkpoint has older names than the model."""
    args = arguments(tmp_path, save_strategy="steps", save_steps=3)
    whole, _, watch = trainer_for(name, STRATEGIES[strategy], arguments(tmp_path / "whole"))
    whole.train()

    interrupted, _, first = trainer_for(name, STRATEGIES[strategy], args)
    first.stop_after = stop
    interrupted.train()
    assert interrupted.state.global_step == stop

    resumed, prepared, second = trainer_for(name, STRATEGIES[strategy], args)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{stop}"))
    assert resumed.state.global_step == 3 * STEPS
    assert first.losses + second.losses == watch.losses
    assert state(prepared.model).keys() == watch.weights[-1].keys()
    assert moved([watch.weights[-1], state(prepared.model)]) == [set()]


def test_the_best_checkpoint_is_loaded_completely(tmp_path: Path) -> None:
    """For a ViT, whose checkpoint has older names than the model; here the best epoch has the largest loss."""
    each: dict[str, Any] = dict.fromkeys(("save_strategy", "eval_strategy"), "epoch")
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    trainer, prepared, watch = trainer_for("vit", STRATEGIES["gradual"], arguments(tmp_path, **each, **best))
    trainer.train()
    epoch = (trainer.state.best_global_step or 0) // STEPS
    assert epoch in (1, 2)
    assert moved([watch.weights[epoch], state(prepared.model)]) == [set()]


def test_on_one_process_frozen_parameters_require_no_gradient(tmp_path: Path) -> None:
    trainer, prepared, _ = trainer_for("vit", STRATEGIES["gradual"], arguments(tmp_path))
    trainer.add_callback(trainable := Trainable())
    trainer.train()
    names = [name for name, _ in prepared.model.named_parameters()]
    assert trainable.names == expected_to_move("vit", "gradual", names)


def test_an_epoch_that_stops_early_counts_as_an_epoch(tmp_path: Path) -> None:
    trainer, _, watch = trainer_for("vit", STRATEGIES["gradual"], arguments(tmp_path))
    trainer.add_callback(CutShort())
    trainer.train()
    assert trainer.state.global_step == STEPS // 2 + 2 * STEPS
    assert moved(watch.weights) == expected_to_move("vit", "gradual", list(watch.weights[0]))


def test_gradual_unfreezing_equals_a_loop_in_which_frozen_parameters_have_no_gradient(tmp_path: Path) -> None:
    """Gradients are clipped by the norm of what learns. Without Adam, which amplifies rounding errors."""
    model, other = tiny_model("vit"), tiny_model("vit")
    args = arguments(
        tmp_path, max_grad_norm=0.5, lr_scheduler_type="constant", weight_decay=0.0, optim="sgd", learning_rate=0.1
    )
    trainer, _, watch = trainer_for("vit", STRATEGIES["gradual"], args, model=model)
    batches = Batches(model)
    trainer.train()
    assert len(batches.kept) == 3 * STEPS

    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    parameters = dict(other.named_parameters())
    for epoch, names in enumerate(expected_to_move("vit", "gradual", list(parameters))):
        other.train().requires_grad_(False)
        for name in names:
            parameters[name].requires_grad_(True)
        for batch in batches.kept[epoch * STEPS : (epoch + 1) * STEPS]:
            optimizer.zero_grad()
            other(**batch).loss.backward()
            assert nn.utils.clip_grad_norm_(other.parameters(), 0.5) > 0.5
            optimizer.step()
        for name, value in other.state_dict().items():
            torch.testing.assert_close(watch.weights[epoch + 1][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "bert"])
def test_full_fine_tuning_equals_trainer_without_the_callback(tmp_path: Path, name: str) -> None:
    """The same losses and weights: with one rate the optimizer is Trainer's own."""
    args = arguments(tmp_path)
    trainer, prepared, watch = trainer_for(name, STRATEGIES["full"], args)
    trainer.train()
    plain_watch, plain = Epochs(), model_of(name)
    Trainer(plain, args, train_dataset=Rows(name), callbacks=[plain_watch]).train()
    assert len(watch.losses) == 3 * STEPS
    assert watch.losses == plain_watch.losses
    assert type(prepared.optimizer) is torch.optim.AdamW
    assert all(torch.equal(value, prepared.model.state_dict()[key]) for key, value in plain.state_dict().items())


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
@pytest.mark.parametrize("strategy", ["full", "gradual", "lora"])
def test_labels_and_numbers_are_trained_with_trainers_own_losses(
    tmp_path: Path, problem_type: Any, strategy: str
) -> None:
    """As `config.problem_type` says; labels are float32 [samples, outputs]."""
    rows, model = Rows("bert"), model_of("bert")
    model.config.problem_type = problem_type
    cells = torch.eye(CLASSES)[rows.columns["labels"]] + torch.eye(CLASSES)[rows.columns["labels"] - 1]
    rows.columns["labels"] = cells
    prepared = prepare_for_trainer(model, STRATEGIES[strategy], batch_of("bert"), arguments(tmp_path))
    batch = {name: column[:BATCH] for name, column in rows.columns.items()}
    outputs = prepared.model.eval()(**batch)
    loss = binary_cross_entropy_with_logits if problem_type != "regression" else mse_loss
    assert outputs.loss.item() == pytest.approx(loss(outputs.logits, cells[:BATCH]).item(), rel=1e-6)
    watch = Epochs()
    args = arguments(tmp_path, num_train_epochs=4)
    prepared = prepare_for_trainer(model_of("bert"), STRATEGIES[strategy], batch_of("bert"), args)
    config: Any = prepared.model.config
    config.problem_type = problem_type
    trainer = Trainer(
        prepared.model, args, train_dataset=rows, callbacks=[prepared.callback, watch],
        optimizers=(prepared.optimizer, None),
    )  # fmt: skip
    trainer.train()
    assert watch.losses[-1] < watch.losses[0]


def test_each_layer_learns_at_its_own_rate(tmp_path: Path) -> None:
    """Adam's first step changes a weight by the rate of its group."""
    args = arguments(tmp_path, max_steps=1, weight_decay=0.0, adam_epsilon=1e-12, lr_scheduler_type="constant")
    trainer, prepared, watch = trainer_for(
        "vit", STRATEGIES["full"], args, layer_lr_decay=0.5, head_learning_rate=0.003
    )
    assert trainer.optimizer is prepared.optimizer
    trainer.train()
    parts = parts_of("vit")
    slices = [(parts.head,), parts.final, *((block,) for block in reversed(parts.blocks)), parts.embeddings]
    for distance, modules in enumerate(slices):
        rate = 0.003 if distance == 0 else 0.01 * 0.5**distance
        inside = [key for key in watch.weights[0] if key.startswith(tuple(f"{module}." for module in modules))]
        steps = [(watch.weights[1][key] - watch.weights[0][key]).abs().max().item() for key in inside]
        assert max(steps) == pytest.approx(rate, rel=1e-3)


def test_the_schedule_of_trainer_scales_each_rate_from_its_peak(tmp_path: Path) -> None:
    trainer, prepared, watch = trainer_for("vit", STRATEGIES["gradual"], arguments(tmp_path), layer_lr_decay=0.5)
    watch.stop_after = STEPS
    trainer.train()
    groups = prepared.optimizer.param_groups
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    parts = parts_of("vit")
    for module, share in ((parts.head, 1.0), (parts.blocks[2], 0.5**2), (parts.blocks[0], 0.5**4)):
        (rate,) = {rates[id(parameter)] for parameter in prepared.model.get_submodule(module).parameters()}
        assert rate == pytest.approx(0.01 * share * 2 / 3)


WITHOUT_US = """
import sys
from pathlib import Path

sys.modules["hf_transfer"] = None
import torch
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

folder = Path(sys.argv[1])
loaders = {"resnet_basic": AutoModelForImageClassification, "bert": AutoPeftModelForSequenceClassification}
logits = {}
for name, loader in loaders.items():
    settings = {"num_labels": 5} if name == "bert" else {}
    model = loader.from_pretrained(folder / name / "checkpoint-6", **settings).eval()
    with torch.no_grad():
        logits[name] = model(**load_file(folder / f"{name}.safetensors")).logits
save_file(logits, folder / "logits.safetensors")
"""


@pytest.mark.slow
def test_what_trainer_saves_loads_without_hf_transfer(tmp_path: Path) -> None:
    """A transformers model, saved while groups are frozen, and a peft adapter on its base."""
    expected: dict[str, Tensor] = {}
    for name, strategy in (("resnet_basic", "gradual"), ("bert", "lora")):
        model = model_of(name)
        model.save_pretrained(tmp_path / "base" / name)
        model.name_or_path = str(tmp_path / "base" / name)
        args = arguments(tmp_path / name, save_strategy="epoch")
        trainer, prepared, watch = trainer_for(name, STRATEGIES[strategy], args, model=model)
        watch.stop_after = STEPS
        trainer.train()
        save_file(batch_of(name), tmp_path / f"{name}.safetensors")
        expected[name] = logits(prepared.model.eval(), batch_of(name))
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_US, str(tmp_path)], capture_output=True, text=True, check=False, timeout=240,
        cwd=tmp_path,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    loaded = load_file(tmp_path / "logits.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(loaded[name], value, rtol=1e-4, atol=1e-4)


def test_after_training_the_modules_have_their_original_classes(tmp_path: Path) -> None:
    """Also if they are frozen to the end; and a second training starts with the first stage."""
    model = model_of("resnet_basic")
    classes = [type(module) for module in model.modules()]
    trainer, prepared, watch = trainer_for("resnet_basic", STRATEGIES["partial"], arguments(tmp_path), model=model)
    assert [type(module) for module in prepared.model.modules()] != classes
    trainer.train()
    assert [type(module) for module in prepared.model.modules()] == classes
    last = expected_to_move("resnet_basic", "partial", [name for name, _ in model.named_parameters()])[0]
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == last
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in copy.deepcopy(model).state_dict().items())
    watch.weights.clear()
    trainer.train()
    assert moved(watch.weights) == expected_to_move("resnet_basic", "partial", list(watch.weights[0]))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the weights of `trainer_run.py`."""
    folder = tmp_path_factory.mktemp("two")
    ended = two_forks(Path(__file__).with_name("trainer_run.py"), str(folder))
    assert ended.returncode == 0, ended.output[-3000:]
    return folder


@pytest.mark.parametrize(("name", "strategy"), [("vit", "gradual"), ("resnet_basic", "gradual"), ("bert", "lora")])
def test_two_processes_agree_after_every_stage_and_move_the_same_parameters(
    two_processes: Path, name: str, strategy: str
) -> None:
    """Although backward also runs through frozen parameters."""
    of_rank = [
        [load_file(two_processes / f"{name}-{epoch}-{rank}.safetensors") for epoch in range(4)] for rank in range(2)
    ]
    for first, second in zip(*of_rank, strict=True):
        # Each process has the statistics of its own last batch: the wrapper broadcasts them in each forward pass.
        different = {key for key, value in first.items() if not torch.equal(value, second[key])}
        assert {key.rpartition(".")[2] for key in different} <= {"running_mean", "running_var"}
    for weights in of_rank:
        # The gradient of the bias of the keys is zero but for rounding, so it may not move without Adam.
        keys = [key for key in weights[0] if not key.endswith("k_proj.bias")]
        kept = [{key: epoch[key] for key in keys} for epoch in weights]
        assert moved(kept) == expected_to_move(name, strategy, keys)


def test_two_processes_equal_one_with_batches_of_twice_the_size(two_processes: Path, tmp_path: Path) -> None:
    """With accumulated gradients, clipped by the norm of what learns."""
    args = arguments(tmp_path, per_device_train_batch_size=2 * BATCH, optim="sgd")
    trainer, _, watch = trainer_for("vit", STRATEGIES["gradual"], args, model=tiny_model("vit"))
    trainer.train()
    together = load_file(two_processes / "vit-3-0.safetensors")
    for key, value in watch.weights[-1].items():
        torch.testing.assert_close(together[key], value, rtol=1e-4, atol=1e-5)


def other_optimizer(folder: Path) -> None:
    args, model = arguments(folder), model_of("vit")
    prepared = prepare_for_trainer(model, STRATEGIES["full"], batch_of("vit"), args)
    Trainer(model, args, train_dataset=Rows("vit"), callbacks=[prepared.callback]).train()


def other_model(folder: Path) -> None:
    args, model = arguments(folder), model_of("vit")
    prepared = prepare_for_trainer(model, STRATEGIES["lora"], batch_of("vit"), args)
    arguments_of_trainer: Any = {"optimizers": (prepared.optimizer, None), "callbacks": [prepared.callback]}
    Trainer(model, args, train_dataset=Rows("vit"), **arguments_of_trainer).train()


def other_length(folder: Path) -> None:
    trainer_for("vit", STRATEGIES["gradual"], arguments(folder, max_steps=4))[0].train()


def too_short(folder: Path) -> None:
    trainer_for("vit", STRATEGIES["lp_ft"], arguments(folder, num_train_epochs=1))


def foreign_optimizer(folder: Path) -> None:
    trainer_for("vit", STRATEGIES["full"], arguments(folder, optim="adafactor"))


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (other_optimizer, r"another model or optimizer\n.*optimizers=\(prepared.optimizer, None\)"),
        (other_model, r"another model or optimizer"),
        (other_length, r"a training of 3 epochs, for which the 3 stages are made\n.*1 epochs\n.*leave max_steps out"),
        (too_short, r"more than 1 epochs, which the stages before the last take\n.*num_train_epochs=1\n"),
        (foreign_optimizer, r"one of torch's own optimizers, and no FSDP or DeepSpeed\n.*optim=adafactor"),
    ],
)
def test_mistakes_are_refused_before_the_first_step(
    tmp_path: Path, mistake: Callable[[Path], None], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        mistake(tmp_path)


class Reopened(GradualUnfreezing):
    """All parameters, then the head, then all."""

    def stages(self, groups: Sequence[Group], epochs: int) -> list[Stage]:
        """See `Strategy.stages`."""
        head, everything = LinearProbeThenFineTuning().stages(groups, epochs)
        return [
            Stage(learns, 1, updates_statistics=learns)
            for learns in (everything.trainable, head.trainable, everything.trainable)
        ]


def test_a_group_that_is_frozen_again_keeps_its_moments(tmp_path: Path) -> None:
    """And they do not change its parameters meanwhile."""
    strategy: Strategy = Reopened()
    trainer, prepared, watch = trainer_for("resnet_basic", strategy, arguments(tmp_path))
    trainer.train()
    keys = set(watch.weights[0])
    assert moved(watch.weights) == [keys, {"classifier.1.weight", "classifier.1.bias"}, keys]
    embedder = prepared.model.get_parameter("resnet.embedder.embedder.convolution.weight")
    assert int(prepared.optimizer.state[embedder]["step"]) == 2 * STEPS
