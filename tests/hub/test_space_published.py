"""The Space of a finished run on the Hub: private or not, the commands, and what is said where it is refused."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from hf_transfer.config import UserError
from hf_transfer.hub.publish import publish_folder
from hf_transfer.hub.space import publish_space
from tests.conftest import Recipe
from tests.hub.finished import FILES
from tests.hub.stand_in import FREE, WRITER, Fault, StandIn
from tests.hub.test_runs import PUSH, said_by


def private_model(hub: StandIn, run: Path, *, private: bool) -> str:
    done = publish_folder(run / "model", "alice/pets", kind="model", private=private, message="m")
    assert hub.model("alice/pets").private is private
    return done.revision


def test_a_private_model_goes_into_its_equally_private_space(hub: StandIn, run: Path) -> None:
    """So that the Space needs no token, and has none."""
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
    """A branch would show another model tomorrow."""
    commit = private_model(hub, run, private=False)
    for revision in (None, "main", commit):
        publish_space(run, "alice/pets", private=False, model="alice/pets", revision=revision)
        made = hub.repositories["spaces", "alice/pets"]
        assert len(made.commits) == 2, "the same again is no commit"
        said = json.loads(made.texts()["settings.json"])
        assert (said["model"], said["revision"]) == ("alice/pets", commit)
        assert set(made.texts()) == FILES | {".gitattributes"}
    assert not made.private


def test_a_model_that_becomes_private_moves_into_the_space_and_back(hub: StandIn, run: Path) -> None:
    """Of an earlier push nothing stays."""
    private_model(hub, run, private=True)
    publish_space(run, "alice/pets", private=True, model="alice/pets")
    hub.model("alice/pets").private = False
    publish_space(run, "alice/pets", private=True, model="alice/pets")
    assert not [name for name in hub.repositories["spaces", "alice/pets"].texts() if name.startswith("model/")]


def test_a_private_model_is_not_shown_to_everybody(hub: StandIn, run: Path) -> None:
    private_model(hub, run, private=True)
    with pytest.raises(UserError, match="Expected: a Space as private as its model alice/pets") as error:
        publish_space(run, "alice/pets", private=False, model="alice/pets")
    assert "Do this:  leave it out, or make the model public first" in str(error.value)
    assert ("spaces", "alice/pets") not in hub.repositories


def test_a_model_that_the_hub_does_not_have_is_named(hub: StandIn, run: Path) -> None:
    with pytest.raises(UserError, match="alice/none"):
        publish_space(run, "alice/pets", private=True, model="alice/none")


def test_the_command_prints_where_it_is(hub: StandIn, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Private unless told, with the model in it unless one is named."""
    code, out, _ = said_by(["space", str(run), "alice/pets"], capsys)
    made = hub.repositories["spaces", "alice/pets"]
    assert (code, out) == (0, f"{hub.endpoint}/spaces/alice/pets at commit {made.commit}\n")
    assert made.private
    assert "model/model.safetensors" in made.texts()
    private_model(hub, run, private=False)
    flags = ["--hub_model_id", "alice/pets", "--hub_private_repo", "false", "--examples", "3"]
    assert said_by(["space", str(run), "alice/open", *flags], capsys)[0] == 0
    made = hub.repositories["spaces", "alice/open"]
    assert not made.private
    assert {name for name in made.texts() if "/" in name} == {f"examples/{number}.png" for number in (1, 2, 3)}


def test_where_the_hub_wants_money_the_demo_on_this_machine_is_named(
    hub: StandIn, run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the command that is left, which then does it."""
    private_model(hub, run, private=False)
    hub.accounts[WRITER] = replace(hub.accounts[WRITER], pays=False)
    asked = ["space", str(run), "alice/pets", "--hub_private_repo", "false", "--hub_model_id", "alice/pets"]
    code, _, err = said_by(asked, capsys)
    assert code == 2
    assert "Found:    402: Spaces that run code need a PRO subscription\n" in err
    left, here = (shlex.split(line.split(": ", 1)[1]) for line in err.strip().splitlines()[-2:])
    assert left == ["hf-transfer", *asked]
    assert here == ["hf-transfer", "demo", str(run)]
    assert "Traceback" not in err
    hub.accounts[WRITER] = replace(hub.accounts[WRITER], pays=True)
    assert said_by(left[1:], capsys)[0] == 0


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
def test_mistakes_are_answered_in_words(
    hub: StandIn, run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    """Before anything is made or served."""
    code, _, err = said_by([str(run) if one == "OUT" else one for one in arguments], capsys)
    assert code == 2
    assert expected in err.split("Found:")[0]
    assert "Do this:" in err
    assert "Traceback" not in err
    assert hub.repositories == {}


def test_a_recipe_publishes_its_demo_behind_its_model(hub: StandIn, vision: Recipe) -> None:
    """Of the same name, both asked for before training."""
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
def test_a_space_that_the_hub_wants_money_for_is_told_before_training(
    hub: StandIn, vision: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", FREE)
    ended = vision(push_to_hub=True, hub_model_id="carol/digits", push_space=True)
    assert ended.code == 2
    assert "402: Spaces that run code need a PRO subscription" in ended.err


def test_a_demo_that_fails_at_the_end_leaves_the_model_published(hub: StandIn, vision: Recipe) -> None:
    """The model comes first, and the command that is left is named."""
    hub.faults = [Fault("/api/spaces/alice/digits/commit", 503, words="down")]
    ended = vision(**PUSH, push_space=True)
    assert ended.code == 2
    assert "model.safetensors" in hub.model("alice/digits").texts()
    assert "What is left to do: hf-transfer space " in ended.err


def test_the_space_alone_is_no_setting(vision: Recipe) -> None:
    ended = vision(push_space=True)
    assert ended.code == 2
    assert "Expected: --push_space with --push_to_hub" in ended.err
