"""Publish a run: checks before anything slow, one commit, and a complete run even if the Hub fails."""

import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import yaml

from hf_transfer import command_line
from hf_transfer.advice.plan import describe_plan
from hf_transfer.errors import UserError
from hf_transfer.hub import runs
from hf_transfer.hub.runs import push_run
from hf_transfer.look_ahead import look_ahead, machine
from hf_transfer.settings.run import VisionConfig
from tests.conftest import Recipe, exit_code
from tests.evaluation.examples import results_of
from tests.hub.contents import Repository
from tests.hub.stand_in import READER, WRITER, Fault, StandIn
from tests.hub.test_card import SETTINGS

PUSH: dict[str, Any] = {"push_to_hub": True, "hub_model_id": "alice/digits"}
ADAPTER = {"base_model_name_or_path": "org/tiny", "revision": "main"}


def a_run(out: Path, **adapter: Any) -> Path:
    """A finished run; of an adapter, if its settings are given."""
    (out / "model").mkdir(parents=True)
    (out / "model/config.json").write_text("{}")
    (out / "model/model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    results_of().write(out)
    (out / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    if adapter:
        (out / "model/adapter_config.json").write_text(json.dumps(adapter))
        (out / "model/model.safetensors").rename(out / "model/adapter_model.safetensors")
    return out


def output_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = exit_code(lambda: command_line.main(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize(
    ("token", "found"), [(None, "no token"), (READER, "a token that may only read"), ("hf_x", "does not know")]
)
@pytest.mark.usefixtures("forbidden")
def test_a_recipe_checks_the_token_before_data_and_model(
    hub: StandIn, vision: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str | None, found: str
) -> None:
    """After training it would be too late."""
    monkeypatch.setenv("HF_TOKEN", token or "")
    ended = vision(**PUSH)
    assert ended.code == 2
    assert found in ended.err.split("Found:    ")[1]
    assert not token or token not in ended.out + ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("forbidden")
def test_an_adapter_of_a_local_base_model_is_refused_before_training(hub: StandIn, vision: Recipe) -> None:
    """Others could not load it."""
    ended = vision(**PUSH, strategy="lora")
    assert ended.code == 2
    assert "Found:    sample:vit-glyphs, which is only on this machine\n" in ended.err
    assert "publish the base first and train from its Hub id, or add --merge_adapter" in ended.err
    assert hub.asked == []


@pytest.mark.usefixtures("forbidden")
def test_what_the_hub_refuses_is_reported_before_training(hub: StandIn, vision: Recipe) -> None:
    hub.faults = [Fault("POST /api/repos/create", 403, words="You have reached your limit of repositories")]
    ended = vision(**PUSH)
    assert ended.code == 2
    assert "403: You have reached your limit of repositories" in ended.err


def test_a_run_whose_push_fails_is_complete_and_names_the_command_that_publishes_it(
    hub: StandIn, vision: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The results are shown and the exit code is not 0; that command and the recipe itself both complete the push."""
    hub.faults = [Fault("/commit/", 503, words="down")]
    ended = vision(**PUSH)
    assert ended.code == 2
    assert "test  " in ended.out
    assert "503: down" in ended.err
    (line,) = [line for line in ended.err.splitlines() if line.startswith("The run is complete in ")]
    command = shlex.split(line.split("To publish it: ")[1])
    assert command == ["hf-transfer", "push", str(tmp_path / "out"), "alice/digits"]
    assert (tmp_path / "out/results.json").is_file()
    assert "README.md" not in hub.model("alice/digits").texts()
    hub.faults = []
    code, out, _ = output_of(command[1:], capsys)
    made = hub.model("alice/digits")
    assert (code, out) == (0, f"{hub.endpoint}/alice/digits at commit {made.commit}\n")
    assert made.private
    assert len(made.commits) == 2
    again = vision(**PUSH)
    assert again.code == 0
    assert f"published    {hub.endpoint}/alice/digits at commit {made.commit}" in again.out
    assert len(made.commits) == 2
    assert WRITER not in ended.out + ended.err + again.out + again.err


@pytest.mark.slow
def test_of_the_strategies_that_are_tried_only_the_chosen_one_is_published(hub: StandIn, vision: Recipe) -> None:
    """Once, with how it was chosen in the card; the same command again makes no commit."""
    settings = {"strategy": "auto", "auto_arms": "full", "max_train_samples_per_class": 6, "num_train_epochs": 1}
    ended = vision(**PUSH, **settings)
    assert ended.code == 0
    made = hub.model("alice/digits")
    texts = made.texts()
    assert "It was chosen by `--strategy auto` among" in texts["README.md"].decode()
    assert not any(name.startswith(("auto/", "checkpoints/")) for name in texts)
    # One creates the repository, the other has all files.
    assert len(made.commits) == 2
    again = vision(**PUSH, **settings)
    assert f"published    {hub.endpoint}/alice/digits at commit {made.commit}" in again.out
    assert len(made.commits) == 2


def test_a_finished_run_is_published_by_the_same_command_with_the_flags_added(
    hub: StandIn, vision: Recipe, tmp_path: Path
) -> None:
    """These flags do not belong to the settings of a run."""
    assert vision().code == 0
    assert hub.asked == []
    assert vision(**PUSH, hub_private_repo=False).code == 0
    assert not hub.model("alice/digits").private
    assert 'pipeline("image-classification", "alice/digits")' in hub.model("alice/digits").texts()["README.md"].decode()
    assert {"push_to_hub", "hub_model_id", "hub_private_repo"}.isdisjoint(
        yaml.safe_load((tmp_path / "out/config.yaml").read_text())
    )


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"push_to_hub": True}, "--push_to_hub and --hub_model_id OWNER/NAME together"),
        ({"hub_model_id": "alice/x"}, "--push_to_hub and --hub_model_id OWNER/NAME together"),
        ({**PUSH, "evaluate_only": True}, "--push_to_hub with training"),
    ],
)
def test_settings_that_need_each_other_are_required_together(flags: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=f"Expected: {expected}"):
        VisionConfig.of(model_name_or_path="m", dataset_name="d", output_dir="o", **flags)


@pytest.mark.parametrize("name", ["out", "out/model"])
def test_a_finished_run_can_be_named_by_the_folder_of_its_model(hub: StandIn, tmp_path: Path, name: str) -> None:
    a_run(tmp_path / "out")
    done = push_run(tmp_path / name, "alice/pets", private=True)
    assert done.revision == hub.model("alice/pets").commit
    assert set(hub.model("alice/pets").texts()) == {".gitattributes", "README.md", "config.json", "model.safetensors"}


@pytest.mark.parametrize("left", ["nothing", "settings", "results"])
def test_a_run_that_is_not_finished_is_not_published(hub: StandIn, tmp_path: Path, left: str) -> None:
    """`--evaluate_only` writes results, but no model."""
    if left != "nothing":
        (tmp_path / "out").mkdir()
        (tmp_path / f"out/{left}.json").write_text("{}")
    with pytest.raises(UserError, match="Expected: a finished run in ") as error:
        push_run(tmp_path / "out", "alice/pets", private=True)
    assert f"Found:    {'no such folder' if left == 'nothing' else 'a folder without them'}\n" in str(error.value)
    assert hub.asked == []


@pytest.mark.parametrize("base", ["/gone/with/the/machine", "../base"])
def test_an_adapter_whose_base_is_no_hub_id_is_not_published(hub: StandIn, tmp_path: Path, base: str) -> None:
    """Also if the path does not exist any more."""
    with pytest.raises(UserError, match=f"Found:    {base}, which is only on this machine"):
        push_run(a_run(tmp_path / "out", base_model_name_or_path=base), "alice/pets", private=True)
    assert hub.asked == []


def test_an_adapter_whose_base_the_hub_does_not_know_is_not_published(hub: StandIn, tmp_path: Path) -> None:
    out = a_run(tmp_path / "out", **ADAPTER)
    with pytest.raises(UserError, match="no such model on the Hub"):
        push_run(out, "alice/pets", private=True)
    hub.repositories["models", "org/tiny"] = Repository()
    assert push_run(out, "alice/pets", private=True).revision == hub.model("alice/pets").commit


@pytest.mark.parametrize(("flag", "private"), [([], True), (["--hub_private_repo", "false"], False)])
def test_the_command_creates_a_private_repository_by_default(
    hub: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: list[str], private: bool
) -> None:
    out = str(a_run(tmp_path / "a run"))
    code, out_text, _ = output_of(["push", out, "alice/pets", *flag], capsys)
    made = hub.model("alice/pets")
    assert (code, out_text) == (0, f"{hub.endpoint}/alice/pets at commit {made.commit}\n")
    assert made.private is private
    hub.faults = [Fault("whoami", 503)]
    code, _, err = output_of(["push", out, "alice/pets", *flag], capsys)
    assert code == 2
    assert err.rstrip().splitlines()[-1].endswith(f": {shlex.join(['hf-transfer', 'push', out, 'alice/pets', *flag])}")


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (WRITER, "of alice, to write"), (READER, "of alice, to read"), (None, "none"),
        ("hf_x", "present; a token that the Hub does not know (401: Invalid credentials in Authorization header)"),
    ],
)  # fmt: skip
def test_the_doctor_says_whose_token_it_is(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch, token: str | None, shown: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token or "")
    assert dict(machine())["token for the Hub"] == shown


@pytest.mark.parametrize(("strategy", "look_ahead"), [("full", look_ahead), ("auto", describe_plan)])
def test_the_doctor_checks_whether_the_result_can_be_published_and_changes_nothing(
    hub: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, strategy: str,
    look_ahead: Callable[[VisionConfig], Iterator[str]],
) -> None:  # fmt: skip
    config = VisionConfig.of(
        model_name_or_path="sample:vit-glyphs", dataset_name="sample:digits", output_dir=str(tmp_path),
        strategy=strategy, **PUSH,
    )  # fmt: skip
    assert next(look_ahead(config)) == "Published by alice as alice/digits, which will be created."
    assert hub.repositories == {}
    monkeypatch.setenv("HF_TOKEN", READER)
    with pytest.raises(UserError, match="a token that may only read"):
        next(look_ahead(config))


def test_only_the_main_process_asks_the_hub(hub: StandIn, tmp_path: Path) -> None:

    class Second:
        is_main_process = False

    config = VisionConfig.of(model_name_or_path="m", dataset_name="d", output_dir=str(tmp_path), **PUSH)
    runs.prepare_to_publish(config, Second())  # type: ignore[arg-type]
    assert hub.asked == []


def test_without_the_flag_the_hub_is_not_asked(vision: Recipe) -> None:
    assert huggingface_hub.constants.HF_HUB_OFFLINE
    assert vision(strategy="lora").code == 0
