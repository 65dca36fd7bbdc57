"""The Space of a finished run on the Hub: private or public, the commands, and their errors."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from hf_transfer.errors import UserError
from hf_transfer.hub.publish import publish_folder
from hf_transfer.hub.space import publish_space
from tests.conftest import Recipe
from tests.hub.finished import FILES
from tests.hub.stand_in import FREE, WRITER, Fault, StandIn
from tests.hub.test_runs import PUSH, output_of


def private_model(hub: StandIn, run: Path, *, private: bool) -> str:
    done = publish_folder(run / "model", "alice/pets", kind="model", private=private, message="m")
    assert hub.model("alice/pets").private is private
    return done.revision


def test_a_private_model_is_copied_into_its_private_space(hub: StandIn, run: Path) -> None:
    """So that the Space needs no token."""
    private_model(hub, run, private=True)
    done = publish_space(run, "alice/pets-demo", private=True, model="alice/pets")
    made = hub.repositories["spaces", "alice/pets-demo"]
    assert done.url == f"{hub.endpoint}/spaces/alice/pets-demo"
    assert done.revision == made.commit
    assert made.private
    files = made.texts()
    assert files["model/model.safetensors"] == (run / "model/model.safetensors").read_bytes()
    assert json.loads(files["settings.json"])["model"] == "./model"
    assert json.loads(files["settings.json"])["title"] == "Pets demo"
    assert not any(WRITER.encode() in content for content in files.values())
    assert [question for question in hub.asked if "secrets" in question or "variables" in question] == []


def test_a_public_model_is_named_with_its_commit(hub: StandIn, run: Path) -> None:
    """A branch may show another model later."""
    commit = private_model(hub, run, private=False)
    for revision in (None, "main", commit):
        publish_space(run, "alice/pets", private=False, model="alice/pets", revision=revision)
        made = hub.repositories["spaces", "alice/pets"]
        assert len(made.commits) == 2, "the same again is no commit"
        settings = json.loads(made.texts()["settings.json"])
        assert (settings["model"], settings["revision"]) == ("alice/pets", commit)
        assert set(made.texts()) == FILES | {".gitattributes"}
    assert not made.private


def test_a_model_that_becomes_private_moves_into_the_space_and_back(hub: StandIn, run: Path) -> None:
    """No file of an earlier push stays."""
    private_model(hub, run, private=True)
    publish_space(run, "alice/pets", private=True, model="alice/pets")
    hub.model("alice/pets").private = False
    publish_space(run, "alice/pets", private=True, model="alice/pets")
    assert not [name for name in hub.repositories["spaces", "alice/pets"].texts() if name.startswith("model/")]


def test_a_private_model_is_not_copied_into_a_public_space(hub: StandIn, run: Path) -> None:
    private_model(hub, run, private=True)
    with pytest.raises(
        UserError, match="Expected: a private Space, as the private model alice/pets is copied into it"
    ) as error:
        publish_space(run, "alice/pets", private=False, model="alice/pets")
    assert "Do this:  leave it out, or make the model public first" in str(error.value)
    assert ("spaces", "alice/pets") not in hub.repositories


def test_a_model_that_is_not_on_the_hub_is_named(hub: StandIn, run: Path) -> None:
    with pytest.raises(UserError, match="alice/none"):
        publish_space(run, "alice/pets", private=True, model="alice/none")


def test_the_command_prints_where_it_is(hub: StandIn, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By default it is private, with a copy of the model."""
    code, out, _ = output_of(["space", str(run), "alice/pets"], capsys)
    made = hub.repositories["spaces", "alice/pets"]
    assert (code, out) == (0, f"{hub.endpoint}/spaces/alice/pets at commit {made.commit}\n")
    assert made.private
    assert "model/model.safetensors" in made.texts()
    private_model(hub, run, private=False)
    flags = ["--hub_model_id", "alice/pets", "--hub_private_repo", "false", "--examples", "3"]
    assert output_of(["space", str(run), "alice/open", *flags], capsys)[0] == 0
    made = hub.repositories["spaces", "alice/open"]
    assert not made.private
    assert {name for name in made.texts() if "/" in name} == {f"examples/{number}.png" for number in (1, 2, 3)}


def test_if_the_space_has_to_be_paid_for_the_message_names_the_demo_on_this_machine(
    hub: StandIn, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the command that publishes the Space later."""
    private_model(hub, run, private=False)
    hub.accounts[WRITER] = replace(hub.accounts[WRITER], pays=False)
    asked = ["space", str(run), "alice/pets", "--hub_private_repo", "false", "--hub_model_id", "alice/pets"]
    code, _, err = output_of(asked, capsys)
    assert code == 2
    assert "Found:    402: Spaces that run code need a PRO subscription\n" in err
    publish, demo = (shlex.split(line.split(": ", 1)[1]) for line in err.strip().splitlines()[-2:])
    assert publish == ["hf-transfer", *asked]
    assert demo == ["hf-transfer", "demo", str(run)]
    assert "Traceback" not in err
    hub.accounts[WRITER] = replace(hub.accounts[WRITER], pays=True)
    assert output_of(publish[1:], capsys)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["space", "OUT", "alice/x", "--examples", "2"], "--examples from 3 to 6, or 0 for none"),
        (["demo", "OUT", "--examples", "7"], "--examples from 3 to 6, or 0 for none"),
        (["demo", "OUT", "--port", "0"], "--port from 1 to 65535"),
        (["demo", "nowhere"], "a finished run in nowhere: results.json and model/"),
        (["space", "nowhere", "alice/x"], "a finished run in nowhere: results.json and model/"),
        (["space", "OUT", "no name at all"], "OWNER/NAME"),
    ],
)
def test_errors_of_the_user_are_explained(
    hub: StandIn, run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    """Before anything is created or served."""
    code, _, err = output_of([str(run) if one == "OUT" else one for one in arguments], capsys)
    assert code == 2
    assert expected in err.split("Found:")[0]
    assert "Do this:" in err
    assert "Traceback" not in err
    assert hub.repositories == {}


def test_a_recipe_publishes_its_model_and_then_its_demo(hub: StandIn, vision: Recipe) -> None:
    """Both have the same name, and are created before training."""
    ended = vision(**PUSH, push_space=True)
    assert ended.code == 0, ended.err
    model, made = hub.model("alice/digits"), hub.repositories["spaces", "alice/digits"]
    assert f"published    {hub.endpoint}/alice/digits at commit {model.commit}\n" in ended.out
    assert f"demo         {hub.endpoint}/spaces/alice/digits at commit {made.commit}\n" in ended.out
    assert model.private
    assert made.private
    assert made.texts()["model/model.safetensors"] == model.texts()["model.safetensors"]
    commits = [number for number, question in enumerate(hub.asked) if "/commit/" in question]
    assert ["spaces" in hub.asked[number] for number in commits] == [False, True]
    settings = json.loads(made.texts()["settings.json"])
    assert settings["title"] == "Digits"
    assert len(settings["examples"]) == 6


@pytest.mark.usefixtures("forbidden")
def test_a_space_that_has_to_be_paid_for_is_reported_before_training(
    hub: StandIn, vision: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", FREE)
    ended = vision(push_to_hub=True, hub_model_id="carol/digits", push_space=True)
    assert ended.code == 2
    assert "402: Spaces that run code need a PRO subscription" in ended.err


def test_a_demo_that_fails_at_the_end_leaves_the_model_published(hub: StandIn, vision: Recipe) -> None:
    """The model comes first, and the message names the command for the Space."""
    hub.faults = [Fault("/api/spaces/alice/digits/commit", 503, words="down")]
    ended = vision(**PUSH, push_space=True)
    assert ended.code == 2
    assert "model.safetensors" in hub.model("alice/digits").texts()
    assert "To publish it: hf-transfer space " in ended.err


def test_the_space_needs_the_model(vision: Recipe) -> None:
    ended = vision(push_space=True)
    assert ended.code == 2
    assert "Expected: --push_space with --push_to_hub" in ended.err
