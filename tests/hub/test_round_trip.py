"""From data to a model that others load: recipes, pushes to the stand-in, and a machine without hf_transfer."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from tests.blocked_imports import BLOCK_HF_TRANSFER
from tests.data.conftest import text_rows, write_table
from tests.hub.clients import Ended, a_data_set, a_model, environment, several_runs
from tests.hub.contents import Repository
from tests.hub.stand_in import READER, WRITER, StandIn, served, with_accounts
from tests.space.conftest import served as demo
from tests.space.programs import Programs, file
from tests.tiny_text_models import save_text_checkpoint

# Run with an empty cache and without hf_transfer: the code in the cards, and all scores of the test samples.
OTHER_MACHINE = (
    BLOCK_HF_TRANSFER
    + """
import json, sys
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, pipeline

def code(name):
    return ModelCard.load(name).text.split("```python\\n")[1].split("```")[0]

from huggingface_hub import snapshot_download

for name in ("pixels", "merged"):
    snapshot_download(f"alice/{name}", repo_type="space", local_dir=f"space of {name}")
pictures, texts = json.loads(sys.argv[1])
scores = {}
classify = pipeline("image-classification", "alice/whole", device="cpu")
scores["whole"] = [{row["label"]: row["score"] for row in classify(Image.open(path))} for path in pictures]
classify = pipeline("text-classification", "alice/merged", device="cpu", top_k=None)
scores["merged"] = [{row["label"]: row["score"] for row in rows} for rows in classify(texts)]
for name in ("whole", "pixels", "words"):
    scope = {}
    exec(code(f"alice/{name}"), scope)
    if name == "whole":
        continue
    rows = scores[name] = []
    for sample in pictures if name == "pixels" else texts:
        if name == "pixels":
            inputs = AutoImageProcessor.from_pretrained("alice/pixels")(Image.open(sample), return_tensors="pt")
        else:
            inputs = AutoTokenizer.from_pretrained("alice/words")(sample, return_tensors="pt")
        with torch.no_grad():
            shares = scope["model"](**inputs).logits[0].softmax(-1)
        rows.append({scope["config"].id2label[number]: share for number, share in enumerate(shares.tolist())})
assert "hf_transfer" not in sys.modules
print("SCORES " + json.dumps(scores))
"""
)


pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Published:
    """The results of all runs.

    Attributes:
        hub: with their models.
        ended: how each run ended.
        ours: scores by `hf-transfer predict`, by the name of the run.
        theirs: scores of the other machine.
        root: the folder of everything.
    """

    hub: StandIn
    ended: dict[str, Ended]
    ours: dict[str, Any]
    theirs: dict[str, Any]
    root: Path


OPENLY = {"hub_private_repo": False}


def _samples(root: Path) -> tuple[list[str], list[str]]:
    return [str(path) for path in sorted((root / "pets").rglob("*.png"))[::3]], [
        row["text"] for row in text_rows(5, seed=9)
    ]


def another_bert(folder: Path) -> Path:
    """A BERT of the same shape with other weights."""
    save_text_checkpoint(folder, "bert")
    weights = load_file(folder / "model.safetensors")
    save_file({name: value * 1.5 for name, value in weights.items()}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    root = tmp_path_factory.mktemp("round-trip")
    home = root / "home"
    a_data_set(root / "pets")
    for seed, name in enumerate(("train", "validation", "test")):
        write_table(root / "texts" / f"{name}.csv", text_rows(20, seed=seed))
    hub = with_accounts()
    hub.repositories["models", "org/tiny"] = Repository(a_model(root / "tiny"))
    hub.repositories["models", "org/bert"] = Repository(save_text_checkpoint(root / "bert", "bert"))
    hub.repositories["datasets", "org/pets"] = Repository(root / "pets")
    hub.repositories["datasets", "org/texts"] = Repository(root / "texts")
    images = {"model_name_or_path": "org/tiny", "dataset_name": "org/pets", "push_to_hub": True}
    texts = images | {"recipe": "text", "model_name_or_path": "org/bert", "dataset_name": "org/texts"}
    runs: dict[str, dict[str, object]] = {
        "whole": images | {"strategy": "full", "hub_model_id": "alice/whole"},
        "pixels": images
        | {"strategy": "lora", "hub_model_id": "alice/pixels", "learning_rate": 0.01, "push_space": True},
        "words": texts | {"strategy": "lora", "hub_model_id": "alice/words", "learning_rate": 0.01},
        "merged": texts
        | {"strategy": "lora", "merge_adapter": True, "hub_model_id": "alice/merged", **OPENLY, "push_space": True},
    }
    files, sentences = _samples(root)
    (root / "sentences.csv").write_text("text\n" + "\n".join(f'"{one}"' for one in sentences) + "\n")
    for name in tuple(runs):
        samples = files if name in ("whole", "pixels") else [str(root / "sentences.csv")]
        runs[f"scores of {name}"] = {
            "command": "predict", "arguments": [str(home / name / "model"), *samples, "--top", "9"]
        }  # fmt: skip
    # Start from models that were pushed.
    runs |= {
        "whole from the Hub": {"command": "predict", "arguments": ["alice/whole", *files, "--top", "9"]},
        "pixels from the Hub": {"command": "predict", "arguments": ["alice/pixels", *files, "--top", "9"]},
        "again": images
        | {"strategy": "linear_probe", "hub_model_id": "alice/again", "model_name_or_path": "alice/whole"},
        "from an adapter": images | {"hub_model_id": "alice/no", "model_name_or_path": "alice/pixels"},
    }
    with served(hub):
        ended = several_runs(hub.endpoint, home, runs, WRITER)
        ours = {
            name: [json.loads(line)["scores"] for line in ended[f"scores of {name}"].out.splitlines()]
            for name in ("whole", "pixels", "words", "merged")
        }
        failed = {name: one.err[-2000:] for name, one in ended.items() if one.code != 0}
        assert failed.keys() == {"from an adapter"}, failed
        # The files of the training are gone, and the base models have newer commits.
        for name, other in (("org/tiny", a_model(root / "other")), ("org/bert", another_bert(root / "other bert"))):
            base = hub.model(name)
            base.add(base.head.files | Repository(other).head.files, "other weights")
        for name in ("home", "tiny", "bert"):
            shutil.move(root / name, root / f"gone {name}")
        (root / "other machine").mkdir()
        shutil.copy(files[0], root / "other machine/picture.png")
        done = subprocess.run(
            [sys.executable, "-I", "-c", OTHER_MACHINE, json.dumps([files, sentences])],
            capture_output=True, text=True, check=False, timeout=900, cwd=root / "other machine",
            env=environment(hub.endpoint, root / "fresh", READER),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        (scores,) = [line for line in done.stdout.splitlines() if line.startswith("SCORES ")]
        yield Published(hub, ended, ours, json.loads(scores.removeprefix("SCORES ")), root)


@pytest.mark.parametrize("name", ["whole", "pixels", "words", "merged"])
def test_another_machine_gets_the_scores_of_the_trained_model(published: Published, name: str) -> None:
    """Whole models by a pipeline, adapters by the code in their cards."""
    ours, theirs = published.ours[name], published.theirs[name]
    assert len(ours) == len(theirs) >= 5
    for expected, scores in zip(ours, theirs, strict=True):
        assert scores == pytest.approx(expected, abs=1e-6)
    assert len({json.dumps(row) for row in ours}) > 1, "a model that always predicts the same shows nothing"


@pytest.mark.parametrize("name", ["pixels", "merged"])
def test_the_demo_of_the_downloaded_space_gives_the_scores_of_the_trained_model(
    published: Published, tmp_path: Path, name: str
) -> None:
    """Without hf_transfer, with an empty cache, and without a token: a private model, here an adapter merged into its
    base model, is copied into the Space; a public model is named with its commit.
    """
    space = published.root / "other machine" / f"space of {name}"
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked/hf_transfer.py").write_text("raise ModuleNotFoundError('hf_transfer is not installed here')\n")
    variables = environment(published.hub.endpoint, tmp_path / "home") | {"PYTHONPATH": str(tmp_path / "blocked")}
    settings = json.loads((space / "settings.json").read_text())
    assert (settings["model"] == "./model") is (name == "pixels")
    assert settings["revision"] == (None if name == "pixels" else published.hub.model("alice/merged").commit)
    pictures, texts = _samples(published.root)
    tokens = published.hub.tokens.copy()
    published.hub.tokens.clear()
    try:
        with demo(space / "app.py", tmp_path / "log", **variables) as served_demo:
            programs = Programs(served_demo.url)
            for number, sample in enumerate(pictures if name == "pixels" else texts):
                given: object = sample
                if name == "pixels":
                    given = file(programs.upload("picture.png", Path(sample).read_bytes())[1])
                assert programs.scores(given, False) == pytest.approx(published.ours[name][number], abs=1e-6)
        assert published.hub.tokens == set()
    finally:
        published.hub.tokens |= tokens


@pytest.mark.parametrize("name", ["whole", "pixels", "words", "merged"])
def test_a_push_is_one_commit_and_private_by_default(published: Published, name: str) -> None:
    made = published.hub.model(f"alice/{name}")
    assert made.private is (name != "merged")
    assert len(made.commits) == 2
    assert f"published    {published.hub.endpoint}/alice/{name} at commit {made.commit}" in published.ended[name].out


def test_the_commits_that_were_loaded_are_recorded(published: Published) -> None:
    """An adapter names the commit of its base model, and is loaded with it even if there is a newer one."""
    hub = published.hub
    # The first commit, from before the push of other weights.
    commits = {name: repository.commits[0].oid for (_, name), repository in hub.repositories.items()}
    adapter = json.loads(hub.model("alice/pixels").texts()["adapter_config.json"])
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("org/tiny", commits["org/tiny"])
    card = hub.model("alice/words").texts()["README.md"].decode()
    for name, setting in (("org/bert", "model_revision"), ("org/texts", "dataset_revision")):
        assert f"\n{setting}: {commits[name]}\n" in card
    of_branch = [request for request in hub.asked if re.search(r"/(resolve|tree)/main", request)]
    assert [request for request in of_branch if "/org/" in request] == []


def test_a_pushed_model_predicts_by_its_hub_id(published: Published) -> None:
    """Also an adapter, with its base model."""
    for name in ("whole", "pixels"):
        lines = published.ended[f"{name} from the Hub"].out.splitlines()
        for expected, line in zip(published.ours[name], lines, strict=True):
            assert json.loads(line)["scores"] == pytest.approx(expected, abs=1e-6)


def test_a_pushed_model_can_be_trained_further_and_is_the_base_model_then(published: Published) -> None:
    hub = published.hub
    assert "linear_probe from alice/whole on org/pets" in published.ended["again"].out
    card = ModelCard(hub.model("alice/again").texts()["README.md"].decode()).data.to_dict()  # type: ignore[no-untyped-call]
    assert (card["base_model"], card["base_model_relation"]) == ("alice/whole", "finetune")
    results = json.loads((published.root / "gone home/again/results.json").read_text())
    assert results["commits"]["model_name_or_path"] == hub.model("alice/whole").commit


def test_an_adapter_on_the_hub_cannot_be_trained_further(published: Published) -> None:
    """transformers would load it with its base model, and train both."""
    ended = published.ended["from an adapter"]
    assert ended.code == 2
    assert "Expected: a whole model to start from\nFound:    an adapter in alice/pixels\n" in ended.err


def test_no_token_is_printed_or_published(published: Published) -> None:
    for one in published.ended.values():
        assert WRITER not in one.out + one.err
    for repository in published.hub.repositories.values():
        assert not any(WRITER.encode() in content for content in repository.texts().values())
    assert published.hub.tokens == {WRITER, READER}
