"""The folder of a Space: the demo, its settings, examples, and the model."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from about import read_settings
from classifier import Classifier, Sample
from hf_transfer.data.splits import Split
from hf_transfer.errors import UserError
from hf_transfer.evaluation.predictor import classify_files
from hf_transfer.evaluation.results import Scores
from hf_transfer.hub import space
from hf_transfer.hub.publish import files_to_publish
from hf_transfer.hub.space import assemble_space, choose_examples, demo_folder, serve_demo
from pictures import decode
from tests.conftest import REPOSITORY, Recipe
from tests.evaluation.examples import results_of
from tests.hub.finished import CAMERA, DEMO, EXAMPLES, FILES
from tests.hub.test_card import SETTINGS
from tests.space.pairs import save_pair
from tests.tiny_pairs import tiny_pair


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def front_matter(text: str) -> dict[str, Any]:
    head: dict[str, Any] = yaml.safe_load(text.split("---\n")[1])
    return head


def test_the_folder_is_the_demo_its_settings_and_the_model(run: Path, tmp_path: Path) -> None:
    """No other files, and all of them are published."""
    folder = assemble_space(run, tmp_path / "space")
    model = {f"model/{name}" for name in ("config.json", "model.safetensors", "preprocessor_config.json")}
    assert files_of(folder) == FILES | model
    assert set(files_to_publish(folder, "space")) == files_of(folder)
    for name in DEMO:
        assert (folder / name).read_bytes() == (REPOSITORY / "space" / name).read_bytes()
    settings = json.loads((folder / "settings.json").read_text())
    score = {"title": "accuracy", "value": 0.75, "low": 0.41, "high": 0.93, "is_share": True, "samples": "8"}
    assert {key: settings[key] for key in settings.keys() - {"examples"}} == {
        "model": "./model", "revision": None, "title": "My first run", "base_model": "tiny", "dataset": "pets",
        "score": score, "trust_remote_code": False,
    }  # fmt: skip
    assert read_settings(folder).model == str(folder / "model")


def test_nothing_of_this_machine_is_in_it(run: Path, tmp_path: Path) -> None:
    """No path, and no metadata of a camera."""
    folder = assemble_space(run, tmp_path / "space", model="alice/pets", revision="a" * 40)
    for path in folder.rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes()
            assert CAMERA.encode() not in path.read_bytes()


def test_examples_are_upright_pictures_of_the_test_split_from_each_class(run: Path, tmp_path: Path) -> None:
    """Three of each, small enough for a page."""
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
    ("labels", "unreadable", "count", "chosen"),
    [
        ([0, 0, 0, 1, 1, 1], {}, 4, [0, 0, 1, 1]), ([0, 0, 1], {}, 6, [0, 0, 1]),
        ([0, 0, 0, 0, 1], {}, 3, [0, 0, 1]), ([0, 1, 1], {0: "damaged"}, 3, [1, 1]),
        (list(range(10)), {}, 5, [0, 2, 4, 6, 8]), (list(range(10)), {}, 3, [0, 3, 6]),
    ],
)  # fmt: skip
def test_examples_are_spread_over_the_classes(
    labels: list[int], unreadable: dict[int, str], count: int, chosen: list[int]
) -> None:
    """As evenly as possible, and no unreadable ones."""
    numbers = np.asarray(labels, dtype=np.int64)
    split = Split(dataset=None, rows=np.arange(len(labels)), targets=numbers, unreadable=unreadable)
    positions = choose_examples(split, numbers, count)
    assert [labels[position] for position in positions] == chosen
    assert len(set(positions)) == len(positions)


def test_its_card_tells_the_hub_how_to_run_it(run: Path, tmp_path: Path) -> None:
    """With the versions that the tests use, and the commit of the model."""
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
    of_repository = front_matter((REPOSITORY / "space/README.md").read_text())
    assert {key: of_repository[key] for key in ("sdk", "sdk_version", "python_version", "app_file")} == {
        key: head[key] for key in ("sdk", "sdk_version", "python_version", "app_file")
    }


def test_what_the_space_installs_is_what_the_tests_run() -> None:
    """Every pin, by name and version."""
    pins = dict(
        line.split("==") for line in (REPOSITORY / "constraints.txt").read_text().lower().split() if "==" in line
    )
    lines = (REPOSITORY / "space/requirements.txt").read_text().splitlines()
    required = [line for line in lines if line and not line.startswith(("#", "--"))]
    assert len(required) >= 8
    for line in required:
        name, version = line.split("==")
        assert pins[name.lower()] == version, line


def test_an_adapter_becomes_a_whole_model_in_the_space(vision: Recipe, tmp_path: Path) -> None:
    """The demo has no peft; its predictions equal those of the adapter to 1e-6, also if the model is on the Hub."""
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
    expected = classify_files(out / "model", paths, top=99)
    predicted = classifier.scores([Sample(decode(path)) for path in paths])
    for answer, scores in zip(expected, predicted, strict=True):
        assert dict(zip(classifier.labels, scores, strict=True)) == pytest.approx(dict(answer.scores), abs=1e-6)


def test_foreign_code_is_not_put_into_a_space(run: Path, tmp_path: Path) -> None:
    """It would be run there; only the modelling files of this version are."""
    shutil.rmtree(run / "model")
    tiny_pair().save_pretrained(run / "model")
    assert (
        json.loads((assemble_space(run, tmp_path / "one") / "settings.json").read_text())["trust_remote_code"] is True
    )
    with (run / "model/fusion.py").open("a") as file:
        file.write("print('hello')\n")
    with pytest.raises(UserError, match=r"no code beside the model in .* but that of this version") as error:
        assemble_space(run, tmp_path / "two")
    assert "Found:    fusion.py\n" in str(error.value)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_demo_and_its_process(
    run: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, code: int
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Sleeping(subprocess.Popen[bytes]):
        """A demo that is waited for when the signal comes: before that, it would end this process."""

        def __init__(self, *_: object, **__: object) -> None:
            super().__init__([sys.executable, "-c", "import time; time.sleep(600)"])
            started.append(self)

        def wait(self, timeout: float | None = None) -> int:
            if not signalled:
                signalled.append(threading.Timer(0.1, os.kill, (os.getpid(), number)))
                signalled[0].start()
            return super().wait(timeout)

    signalled: list[threading.Timer] = []
    monkeypatch.setattr(subprocess, "Popen", Sleeping)
    assert serve_demo(run, port=7999) == code
    assert started[0].poll() is not None


def test_images_with_texts_have_both_in_their_examples(run: Path, tmp_path: Path) -> None:
    """Also an example without a text."""
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
    config = {name: SETTINGS[name] for name in ("strategy", "seed", "output_dir")} | pair
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.rmtree(run / "model")
    save_pair(run / "model")
    scores = {"test": Scores({"accuracy": 0.9, "loss": 1.0}, {"accuracy": (0.1, 0.95)}, 8)}
    scores["test image_only"] = Scores({"accuracy": 0.5, "loss": 1.0}, {"accuracy": (0.1, 0.95)}, 7, 1)
    results_of(recipe="multimodal", scores=scores, dataset_name=str(root), commits={}).write(run)
    settings = json.loads((assemble_space(run, tmp_path / "space") / "settings.json").read_text())
    assert settings["score"]["value"] == 0.9
    assert (settings["texts"], settings["max_length"]) == (["text"], 9)
    assert len(settings["examples"]) == 6
    texts = [one["texts"][0] for one in settings["examples"]]
    assert "" in texts
    for one in settings["examples"]:
        number = int(one["texts"][0].removeprefix("word") or 3)
        assert one["label"] == ("cat", "dog")[number % 2]
        with Image.open(tmp_path / "space" / one["picture"]) as picture:
            assert picture.getpixel((5, 5)) == (number * 20, 0, 99)


def test_if_the_data_are_gone_the_demo_can_be_made_without_examples(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "pets")
    with pytest.raises(UserError, match="Or leave the examples out: --examples 0"):
        assemble_space(run, tmp_path / "one")
    assert (assemble_space(run, tmp_path / "two", examples=0) / "app.py").is_file()


def test_the_demo_is_found_beside_the_package_or_inside_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In a clone and in an installation; without it the installation is damaged."""
    assert demo_folder() == REPOSITORY / "space"
    monkeypatch.setattr(space, "__file__", str(tmp_path / "site/hf_transfer/hub/space.py"))
    with pytest.raises(UserError, match="pip install --force-reinstall"):
        demo_folder()
    (tmp_path / "site/hf_transfer/space").mkdir(parents=True)
    (tmp_path / "site/hf_transfer/space/app.py").write_text("")
    assert demo_folder() == tmp_path / "site/hf_transfer/space"
