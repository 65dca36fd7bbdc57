"""The Space of a finished run: what is in its folder, how it gets to the Hub, and the commands."""

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from about import read_settings
from classifier import Classifier, Question
from hf_transfer.config import UserError
from hf_transfer.data.labels import Labels
from hf_transfer.data.splits import Split
from hf_transfer.evaluation.predict import classify_images
from hf_transfer.hub import space
from hf_transfer.hub.publish import files_to_publish, publish_folder
from hf_transfer.hub.space import assemble_space, choose_examples, demo_folder, pinned_version, publish_space
from pictures import decode
from tests.conftest import REPOSITORY, Recipe
from tests.hub.stand_in import FREE, WRITER, Fault, StandIn
from tests.hub.test_card import RESULTS, SETTINGS
from tests.hub.test_runs import PUSH, said_by
from tests.tiny_models import save_checkpoint
from tests.tiny_pairs import tiny_pair

NAMES = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}
DEMO = {"app.py", "about.py", "batch.py", "classifier.py", "explanation.py", "guard.py", "heat.py", "page.py",
        "pictures.py", "service.py", "style.css", "requirements.txt"}  # fmt: skip
EXAMPLES = {f"examples/{number}.png" for number in range(1, 7)}
OURS = DEMO | EXAMPLES | {"README.md", "settings.json"}


@pytest.fixture
def run(tmp_path: Path, picture_folder: Callable[..., Path]) -> Path:
    """A finished run on pictures of this machine, one of which a camera has taken on its side."""
    for split, count in (("train", 8), ("validation", 4), ("test", 4)):
        picture_folder(name=f"pets/{split}", cat=count, dog=count)
    exif = Image.Exif()
    exif[0x010F], exif[274] = "The owner's camera", 6
    for path in (tmp_path / "pets/test/cat").iterdir():
        with Image.open(path) as picture:
            picture.resize((1600, 800)).save(path.with_suffix(".jpg"), exif=exif)
        path.unlink()
    out = tmp_path / "my_first-run"
    save_checkpoint(out / "model", **NAMES)
    (out / "results.json").write_text(json.dumps(RESULTS | {"commits": {}, "dataset_name": str(tmp_path / "pets")}))
    (out / "config.yaml").write_text(yaml.safe_dump(SETTINGS | {"dataset_name": str(tmp_path / "pets")}))
    return out


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def front_matter(text: str) -> dict[str, Any]:
    head: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return head


def test_the_folder_is_the_demo_its_settings_and_the_model(run: Path, tmp_path: Path) -> None:
    """Nothing else, and nothing of it is held back when it is published.

    Mutation: hf_transfer/hub/publish.py: ""README.md", "*.py", "requirements.txt"" -> ""README.md", "requirements.txt""
    """
    folder = assemble_space(run, tmp_path / "space")
    model = {f"model/{name}" for name in ("config.json", "model.safetensors", "preprocessor_config.json")}
    assert files_of(folder) == OURS | model
    assert set(files_to_publish(folder, "space")) == files_of(folder)
    for name in DEMO:
        assert (folder / name).read_bytes() == (REPOSITORY / "space" / name).read_bytes()
    said = json.loads((folder / "settings.json").read_text())
    assert {key: said[key] for key in said.keys() - {"examples"}} == {
        "model": "./model", "revision": None, "title": "My first run", "base_model": "org/tiny", "dataset": "pets",
        "accuracy": {"value": 0.75, "low": 0.41, "high": 0.93, "samples": 8}, "trust_remote_code": False,
    }  # fmt: skip
    assert read_settings(folder).model == str(folder / "model")


def test_nothing_of_this_machine_is_in_it(run: Path, tmp_path: Path) -> None:
    """No path, and not what a camera notes.

    Mutation: hf_transfer/hub/space.py: "shown_name(results, "dataset_name")" -> "results["dataset_name"]"
    """
    folder = assemble_space(run, tmp_path / "space", model="alice/pets", revision="a" * 40)
    for path in folder.rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes()
            assert b"owner's camera" not in path.read_bytes()


def test_examples_are_upright_pictures_of_the_test_split_from_each_class(run: Path, tmp_path: Path) -> None:
    """Three of each, small enough for a page.

    Mutation: hf_transfer/hub/space.py: "return load_image_splits(config).test" -> "return load_image_splits(config).train"
    """  # noqa: E501
    folder = assemble_space(run, tmp_path / "space")
    examples = json.loads((folder / "settings.json").read_text())["examples"]
    assert [one["label"] for one in examples] == ["cat"] * 3 + ["dog"] * 3
    assert {one["picture"] for one in examples} == EXAMPLES
    of_test = {path.read_bytes() for path in (tmp_path / "pets/test/dog").iterdir()}
    shown = {Image.open(path).tobytes() for path in (tmp_path / "pets/test/dog").iterdir()}
    assert len(shown) == len(of_test) == 4
    for one in examples:
        with Image.open(folder / one["picture"]) as picture:
            if one["label"] == "cat":
                assert picture.size == (512, space.EXAMPLE_SIDE)
            else:
                assert picture.tobytes() in shown
    assert files_of(assemble_space(run, tmp_path / "none", examples=0)) >= DEMO
    assert json.loads((tmp_path / "none/settings.json").read_text())["examples"] == []
    assert not (tmp_path / "none/examples").exists()


@pytest.mark.parametrize(
    ("labels", "bad", "count", "chosen"),
    [
        ([0, 0, 0, 1, 1, 1], {}, 4, [0, 0, 1, 1]), ([0, 0, 1], {}, 6, [0, 0, 1]),
        ([0, 0, 0, 0, 1], {}, 3, [0, 0, 1]), ([0, 1, 1], {0: "damaged"}, 3, [1, 1]),
        (list(range(10)), {}, 5, [0, 2, 4, 6, 8]), (list(range(10)), {}, 3, [0, 3, 6]),
    ],
)  # fmt: skip
def test_examples_are_spread_over_the_classes(
    labels: list[int], bad: dict[int, str], count: int, chosen: list[int]
) -> None:
    """As evenly as there are classes, and none that cannot be read.

    Mutation: hf_transfer/hub/space.py: "number * len(classes) // count" -> "number"
    """
    numbers: Labels = np.asarray(labels, dtype=np.int64)
    split = Split(dataset=None, rows=np.arange(len(labels)), labels=numbers, bad=bad)  # type: ignore[arg-type]
    positions = choose_examples(split, count)
    assert [labels[position] for position in positions] == chosen
    assert len(set(positions)) == len(positions)


def test_its_card_tells_the_hub_how_to_run_it(run: Path, tmp_path: Path) -> None:
    """With the versions that the tests run, and the commit of the model.

    Mutation: hf_transfer/hub/space.py: "sdk_version=pinned_version("gradio")" -> "sdk_version="5.0.0""
    """
    folder = assemble_space(run, tmp_path / "space", title="Pets: cats", model="alice/pets", revision="a" * 40)
    text = (folder / "README.md").read_text()
    head = front_matter(text)
    pins = dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().split() if "==" in line)
    assert (head["sdk"], head["sdk_version"], head["app_file"]) == ("gradio", pins["gradio"], "app.py")
    assert head["python_version"] == "3.12"
    assert head["title"] == "Pets: cats"
    assert head["models"] == head["preload_from_hub"] == ["alice/pets"]
    assert "datasets" not in head
    assert len(head["short_description"]) <= 60
    assert f"alice/pets](https://huggingface.co/alice/pets) at commit `{'a' * 40}`" in text
    alone = front_matter((assemble_space(run, tmp_path / "alone") / "README.md").read_text())
    assert {"models", "preload_from_hub"}.isdisjoint(alone)
    own = front_matter((REPOSITORY / "space/README.md").read_text())
    assert {key: own[key] for key in ("sdk", "sdk_version", "python_version", "app_file")} == {
        key: head[key] for key in ("sdk", "sdk_version", "python_version", "app_file")
    }


def test_what_the_space_installs_is_what_the_tests_run() -> None:
    """Every pin, by name and version.

    Mutation: space/requirements.txt: "numpy==2.4.6" -> "numpy==2.4.5"
    """
    pins = dict(line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().split() if "==" in line)
    lines = (REPOSITORY / "space/requirements.txt").read_text().splitlines()
    required = [line for line in lines if line and not line.startswith(("#", "--"))]
    assert len(required) >= 8
    for line in required:
        name, version = line.split("==")
        assert pins[name] == version, line
    assert pinned_version("pillow") == pins["pillow"]


def private_model(hub: StandIn, run: Path, *, private: bool) -> str:
    done = publish_folder(run / "model", "alice/pets", kind="model", private=private, message="m")
    assert hub.model("alice/pets").private is private
    return done.revision


def test_a_private_model_goes_into_its_equally_private_space(hub: StandIn, run: Path) -> None:
    """So that the Space needs no token, and has none.

    Mutation: hf_transfer/hub/space.py: "pinned = None if hidden else model" -> "pinned = model"
    """
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
    """A branch would show another model tomorrow.

    Mutation: hf_transfer/hub/space.py: "    return found.sha, bool(found.private)" -> "    return revision or 'main', bool(found.private)"
    """  # noqa: E501
    commit = private_model(hub, run, private=False)
    for revision in (None, "main", commit):
        publish_space(run, "alice/pets", private=False, model="alice/pets", revision=revision)
        made = hub.repositories["spaces", "alice/pets"]
        assert len(made.commits) == 2, "the same again is no commit"
        said = json.loads(made.texts()["settings.json"])
        assert (said["model"], said["revision"]) == ("alice/pets", commit)
        assert set(made.texts()) == OURS | {".gitattributes"}
    assert not made.private


def test_a_model_that_becomes_private_moves_into_the_space_and_back(hub: StandIn, run: Path) -> None:
    """Of an earlier push nothing stays."""
    private_model(hub, run, private=True)
    publish_space(run, "alice/pets", private=True, model="alice/pets")
    hub.model("alice/pets").private = False
    publish_space(run, "alice/pets", private=True, model="alice/pets")
    assert not [name for name in hub.repositories["spaces", "alice/pets"].texts() if name.startswith("model/")]


def test_a_private_model_is_not_shown_to_everybody(hub: StandIn, run: Path) -> None:
    """Mutation: hf_transfer/hub/space.py: "    if hidden and not private:" -> "    if False:" """
    private_model(hub, run, private=True)
    with pytest.raises(UserError, match="Expected: a Space as private as its model alice/pets") as error:
        publish_space(run, "alice/pets", private=False, model="alice/pets")
    assert "Do this:  leave it out, or make the model public first" in str(error.value)
    assert ("spaces", "alice/pets") not in hub.repositories


def test_a_model_that_the_hub_does_not_have_is_named(hub: StandIn, run: Path) -> None:
    with pytest.raises(UserError, match="alice/none"):
        publish_space(run, "alice/pets", private=True, model="alice/none")


def test_an_adapter_becomes_a_whole_model_in_the_space(vision: Recipe, tmp_path: Path) -> None:
    """The demo has no peft; it says what the adapter says, to 1e-6, also where the run names a model on the Hub.

    Mutation: hf_transfer/hub/space.py: "if model is None or is_adapter_folder(folder):" -> "if model is None:"
    """
    assert vision(strategy="lora", learning_rate=0.01).code == 0
    out = tmp_path / "out"
    assert (out / "model/adapter_config.json").is_file()
    folder = assemble_space(out, tmp_path / "space", model="alice/adapter", revision="b" * 40)
    files = {path.name for path in (folder / "model").iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= files
    assert not [name for name in files if name.startswith("adapter")]
    settings = read_settings(folder)
    assert (settings.model, settings.revision) == (str(folder / "model"), None)
    classifier = Classifier(Path(settings.model))
    paths = sorted((folder / "examples").iterdir())
    expected = classify_images(str(out / "model"), paths, top=99)
    found = classifier.probabilities([Question(decode(path)) for path in paths])
    for answer, scores in zip(expected, found, strict=True):
        assert dict(zip(classifier.labels, scores, strict=True)) == pytest.approx(dict(answer.scores), abs=1e-6)


def test_code_that_is_not_ours_is_not_put_into_a_space(run: Path, tmp_path: Path) -> None:
    """It would be run there; a model's own file of ours is.

    Mutation: hf_transfer/hub/space.py: "if ours.get(path.name) != path.read_bytes()]" -> "if path.name not in ours]"
    """
    shutil.rmtree(run / "model")
    tiny_pair().save_pretrained(run / "model")
    assert (
        json.loads((assemble_space(run, tmp_path / "one") / "settings.json").read_text())["trust_remote_code"] is True
    )
    with (run / "model/fusion.py").open("a") as file:
        file.write("print('hello')\n")
    with pytest.raises(UserError, match="no code but our own, as the demo would run it") as error:
        assemble_space(run, tmp_path / "two")
    assert "Found:    fusion.py\n" in str(error.value)


def test_images_with_texts_have_both_in_their_examples(run: Path, tmp_path: Path) -> None:
    """And one that lacks its text or its picture, too.

    Mutation: hf_transfer/hub/space.py: "[text or "" for text in texts[position]]" -> "list(texts[position])"
    """
    root = tmp_path / "pairs"
    for split in ("train", "validation", "test"):
        (root / split).mkdir(parents=True)
        lines = ["file_name,text,label"]
        for number in range(8):
            Image.new("RGB", (20, 20), (number * 20, 0, 99)).save(root / split / f"{number}.png")
            words = "" if number == 3 else f"word{number}"
            lines.append(f"{number}.png,{words},{('cat', 'dog')[number % 2]}")
        (root / split / "metadata.csv").write_text("\n".join(lines) + "\n")
    pair = {"recipe": "multimodal", "image_model_name_or_path": "a/b", "text_model_name_or_path": "c/d",
            "dataset_name": str(root), "max_seq_length": 9}  # fmt: skip
    settings = {name: SETTINGS[name] for name in ("strategy", "seed", "output_dir")} | pair
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    metrics = {part: {"accuracy": value, "loss": 1.0} for part, value in (("both", 0.9), ("image_only", 0.5))}
    intervals = {part: {"accuracy": [0.1, 0.95]} for part in metrics}
    results = json.loads((run / "results.json").read_text())
    results |= {"recipe": "multimodal", "metrics": {"test": metrics}, "intervals": {"test": intervals}}
    (run / "results.json").write_text(json.dumps(results))
    said = json.loads((assemble_space(run, tmp_path / "space") / "settings.json").read_text())
    assert said["accuracy"]["value"] == 0.9
    assert (said["texts"], said["max_length"]) == (["text"], 9)
    assert len(said["examples"]) == 6
    texts = [one["texts"][0] for one in said["examples"]]
    assert "" in texts
    for one in said["examples"]:
        number = int(one["texts"][0].removeprefix("word") or 3)
        assert one["label"] == ("cat", "dog")[number % 2]
        with Image.open(tmp_path / "space" / one["picture"]) as picture:
            assert picture.getpixel((5, 5)) == (number * 20, 0, 99)


def test_the_command_prints_where_it_is(hub: StandIn, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Private unless told, with the model in it unless one is named.

    Mutation: hf_transfer/command_line.py: "model=arguments.hub_model_id, examples" -> "model=None, examples"
    """
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
    """And the command that is left, which then does it.

    Mutation: hf_transfer/hub/space.py: "["--hub_model_id", model] if model else []" -> "[]"
    """
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
    """Before anything is made or served.

    Mutation: hf_transfer/command_line.py: "if count != 0 and not 3 <= count <= 6:" -> "if False:"
    """
    code, _, err = said_by([str(run) if one == "OUT" else one for one in arguments], capsys)
    assert code == 2
    assert expected in err.split("Found:")[0]
    assert "Do this:" in err
    assert "Traceback" not in err
    assert hub.repositories == {}


def test_data_that_are_gone_leave_the_examples_out(run: Path, tmp_path: Path) -> None:
    """The model is still there to be shown.

    Mutation: hf_transfer/hub/space.py: "    if count == 0:" -> "    if False:"
    """
    shutil.rmtree(tmp_path / "pets")
    with pytest.raises(UserError, match="Or leave the examples out: --examples 0"):
        assemble_space(run, tmp_path / "one")
    assert (assemble_space(run, tmp_path / "two", examples=0) / "app.py").is_file()


def test_the_demo_is_found_beside_the_package_or_within(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a clone and in an installation; nowhere is a damaged one.

    Mutation: hf_transfer/hub/space.py: "(package.parent / "space", package / "space")" -> "(package.parent / "space",)"
    """
    assert demo_folder() == REPOSITORY / "space"
    monkeypatch.setattr(space, "__file__", str(tmp_path / "site/hf_transfer/hub/space.py"))
    with pytest.raises(UserError, match="pip install --force-reinstall"):
        demo_folder()
    (tmp_path / "site/hf_transfer/space").mkdir(parents=True)
    (tmp_path / "site/hf_transfer/space/app.py").write_text("")
    assert demo_folder() == tmp_path / "site/hf_transfer/space"


def test_a_recipe_publishes_its_demo_behind_its_model(hub: StandIn, vision: Recipe) -> None:
    """Of the same name, both asked for before training.

    Mutation: hf_transfer/hub/runs.py: "        if config.push_space:" -> "        if False:"
    """
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
    """Mutation: hf_transfer/hub/runs.py: "("model", "space") if config.push_space" -> "("model",) if config.push_space" """
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
    """Mutation: hf_transfer/config.py: "if self.push_space and not self.push_to_hub:" -> "if False:" """
    ended = vision(push_space=True)
    assert ended.code == 2
    assert "Expected: --push_space with --push_to_hub" in ended.err
