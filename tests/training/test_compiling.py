"""--torch_compile: the blocks that learn run compiled, and nothing of it is left in the model or its files."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch._dynamo.testing import CompileCounterWithBackend

from hf_transfer.errors import UserError
from hf_transfer.models.groups import trace_groups
from hf_transfer.strategies.freezing import FullFineTuning, set_trainable
from hf_transfer.training.compiling import check_compiler, compile_failure, compiled
from hf_transfer.training.devices import start_accelerator
from tests.tiny_models import pixels, tiny_model
from tests.training.launched import two_forks
from tests.training.resumed_runs import CASES, killed, weights
from tests.training.toy_task import settings, train_vit

CPU = torch.device("cpu")
COMPILED: dict[str, Any] = {"torch_compile": True, "torch_compile_backend": "eager"}


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> None:
    torch._dynamo.reset()


def counting(monkeypatch: pytest.MonkeyPatch, backend: str = "eager") -> CompileCounterWithBackend:
    """Counts the graphs that are compiled."""
    counter = CompileCounterWithBackend(backend)
    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **more: original(self, **{**more, "backend": counter}))
    return counter


def compiled_modules(model: torch.nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if module._compiled_call_impl is not None]


def test_only_groups_that_learn_are_compiled_and_only_for_the_stage() -> None:
    model = tiny_model("vit")
    groups = trace_groups(model, pixels("vit"))
    set_trainable(model, groups, {*groups[-1].parameters, *groups[-3].parameters})
    names, kinds = list(model.state_dict()), [type(module) for module in model.modules()]
    with compiled(model, groups, settings(**COMPILED).training, lengths_vary=False):
        assert compiled_modules(model) == [*groups[-3].modules, *groups[-1].modules]
        assert list(model.state_dict()) == names
        assert compiled_modules(copy.deepcopy(model)) == []
    assert compiled_modules(model) == []
    assert [type(module) for module in model.modules()] == kinds


def test_nothing_stays_compiled_after_an_error() -> None:
    model = tiny_model("vit")
    groups = trace_groups(model, pixels("vit"))
    with pytest.raises(ZeroDivisionError), compiled(model, groups, settings(**COMPILED).training, lengths_vary=False):
        raise ZeroDivisionError
    assert compiled_modules(model) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["full", "gradual", "partial", "lora", "statistics"],
)
def test_a_compiled_run_has_the_weights_of_one_that_is_not(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend `eager` runs torch's own operations: the same bytes, also with stages, stores and adapters."""
    for folder in ("plain", "compiled"):
        (tmp_path / folder).mkdir()
    CASES[name].run(tmp_path / "plain", save_steps=0)
    counter = counting(monkeypatch)
    fitted = CASES[name].run(tmp_path / "compiled", save_steps=0, **COMPILED)
    assert counter.frame_count > 0
    assert weights(tmp_path / "compiled") == weights(tmp_path / "plain")
    assert not any("_orig_mod" in key for key in fitted.model.state_dict())
    assert compiled_modules(fitted.model) == []


@pytest.mark.slow
def test_blocks_of_one_kind_share_their_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve blocks are compiled as often as three."""
    counts = []
    for depth in (3, 12):
        torch._dynamo.reset()
        with monkeypatch.context() as patch:
            counter = counting(patch)
            train_vit(settings(num_train_epochs=1, **COMPILED), num_hidden_layers=depth)
        counts.append(counter.frame_count)
    assert counts[0] == counts[1] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "full_text"])
def test_a_compiled_run_that_was_killed_resumes_to_the_same_bytes(tmp_path: Path, name: str) -> None:
    """With a backend that compiles the backward pass, too; of texts each batch has another length."""
    more: dict[str, Any] = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    (tmp_path / "whole").mkdir()
    CASES[name].run(tmp_path / "whole", save_steps=0, **more)
    torch._dynamo.reset()
    assert killed(CASES[name], tmp_path / "killed", 9, **more) == -9
    assert CASES[name].run(tmp_path / "killed", **more).resumed == [8]
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


@pytest.mark.slow
def test_gradient_checkpointing_and_bfloat16_work_with_compiled_blocks() -> None:
    more: dict[str, Any] = {"bf16": True, "gradient_checkpointing": True, "num_train_epochs": 1}
    plain = train_vit(settings(**more))
    other = train_vit(settings(torch_compile=True, torch_compile_backend="aot_eager", **more))
    assert other.history[0]["train_loss"] == pytest.approx(plain.history[0]["train_loss"], rel=1e-2)


@pytest.mark.slow
def test_two_processes_train_compiled_layers_to_the_same_bytes(tmp_path: Path) -> None:
    ended = two_forks(Path(__file__).with_name("compiled_runs.py"), str(tmp_path))
    assert ended.returncode == 0, ended.output[-3000:]
    plain, other = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("plain", "compiled"))
    assert plain == other


@pytest.mark.slow
def test_inductor_trains_like_torch_itself() -> None:
    """Up to rounding; this compiles C++."""
    more: dict[str, Any] = {"num_train_epochs": 1}
    plain, other = train_vit(settings(**more)), train_vit(settings(torch_compile=True, **more))
    assert other.history[0]["train_loss"] == pytest.approx(plain.history[0]["train_loss"], rel=0.05)
    assert other.history[0]["accuracy"] == pytest.approx(plain.history[0]["accuracy"], abs=0.21)


def test_an_unknown_backend_is_refused_before_anything_slow() -> None:
    with (
        pytest.raises(UserError, match=r"a --torch_compile_backend that torch knows: .*inductor.*\nFound:    indctor"),
        start_accelerator(settings(torch_compile=True, torch_compile_backend="indctor")),
    ):
        pass


def test_without_a_compiler_inductor_is_refused_and_other_backends_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise RuntimeError("No working C++ compiler found in cpp.cxx: (None, 'g++')\nmore")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    with pytest.raises(UserError) as caught:
        check_compiler(settings(torch_compile=True).training, CPU)
    expected, found, do = str(caught.value).splitlines()
    assert expected == "Expected: what torch.compile needs on this device: a C++ compiler, such as g++"
    assert found == "Found:    No working C++ compiler found in cpp.cxx: (None, 'g++')"
    assert do.startswith("Do this:  install it, leave out --torch_compile, or add")
    check_compiler(settings(**COMPILED).training, CPU)
    check_compiler(settings().training, CPU)


def test_without_triton_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(UserError, match="needs on this device: Triton"):
        check_compiler(settings(torch_compile=True).training, torch.device("cuda"))


def test_code_that_cannot_be_compiled_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_graph: Any, _inputs: Any) -> Any:
        raise NotImplementedError("no such kernel")

    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **more: original(self, **{**more, "backend": broken}))
    with pytest.raises(UserError) as caught:
        train_vit(settings(**COMPILED))
    expected, found, do = str(caught.value).splitlines()
    assert expected == "Expected: a model whose blocks torch.compile can compile"
    assert "no such kernel" in found
    assert do.startswith("Do this:  leave out --torch_compile")
    assert compile_failure(RuntimeError("another")) is None


def test_the_model_of_a_run_learns_in_all_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """With full fine-tuning every group is compiled."""
    counter = counting(monkeypatch)
    train_vit(settings(num_train_epochs=1, **COMPILED), strategy=FullFineTuning())
    assert counter.frame_count > 0
