"""A model of timm by its Hub id: files as timm itself uploads them, a revision, and a second use without the Hub."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.hub.clients import Ended, a_data_set, several_runs
from tests.hub.contents import Repository
from tests.hub.stand_in import StandIn, served
from tests.with_timm.tiny_timm import save_timm

NAME = "timm/test_resnet.r160_in1k"
SETTINGS: dict[str, object] = {"model_name_or_path": NAME, "strategy": "linear_probe"}


class Given:
    """A repository with two versions of a model, and runs on it; `ended` by their names."""

    def __init__(self, root: Path) -> None:
        self.home, self.hub = root / "home", StandIn()
        a_data_set(root / "pets")
        self.folders = {"v1": save_timm(root / "first", input_size=(3, 64, 64))}
        self.folders["main"] = shutil.copytree(self.folders["v1"], root / "second")
        weights = load_file(self.folders["main"] / "model.safetensors")
        weights[next(name for name, value in weights.items() if value.ndim == 4)] *= -1
        save_file(weights, self.folders["main"] / "model.safetensors")
        repository = self.hub.repositories["models", NAME] = Repository(self.folders["v1"])
        repository.tags["v1"] = repository.commit
        repository.add(Repository(self.folders["main"]).head.files, "other weights")
        self.commits = {"v1": repository.tags["v1"], "main": repository.commit}
        (root / "bare").mkdir()
        shutil.copy(self.folders["v1"] / "model.safetensors", root / "bare")
        self.hub.repositories["models", "timm/bare"] = Repository(root / "bare")
        runs: dict[str, dict[str, object]] = {
            "main": SETTINGS,
            "v1": {**SETTINGS, "model_revision": "v1"},
            "bare": {**SETTINGS, "model_name_or_path": "timm/bare"},
        }
        with served(self.hub):
            self.ended: dict[str, Ended] = several_runs(self.hub.endpoint, self.home, runs)
        # Nobody listens there any more.
        self.ended |= several_runs(self.hub.endpoint, self.home, {"offline": SETTINGS})

    def results(self, run: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.home / run / "results.json").read_text(encoding="utf-8"))
        return content


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    return Given(tmp_path_factory.mktemp("hub"))


@pytest.mark.slow
@pytest.mark.parametrize("revision", ["main", "v1"])
def test_the_files_of_a_revision_are_downloaded_and_trained(given: Given, revision: str) -> None:
    assert given.ended[revision].code == 0, given.ended[revision].err
    assert f"linear_probe from {NAME}" in given.ended[revision].out
    assert given.results(revision)["commits"] == {"model_name_or_path": given.commits[revision]}
    published = load_file(given.folders[revision] / "model.safetensors")
    saved = {
        name.removeprefix("timm_model."): value
        for name, value in load_file(given.home / revision / "model" / "model.safetensors").items()
    }
    assert saved.keys() == published.keys()
    assert all(torch.equal(saved[name], published[name]) for name in saved if not name.startswith("fc."))
    asked = [line for line in given.hub.asked if line.endswith(f"/{given.commits[revision]}/model.safetensors")]
    assert any(line.startswith("GET") for line in asked)


@pytest.mark.slow
def test_a_second_use_needs_no_hub(given: Given) -> None:
    """The weights are those of the cache, and so are the figures."""
    assert given.ended["offline"].code == 0, given.ended["offline"].err
    first, second = (given.results(run) for run in ("main", "offline"))
    assert second["commits"] == first["commits"]
    assert second["metrics"] == first["metrics"]


@pytest.mark.slow
def test_a_repository_without_a_configuration_is_an_error_that_names_the_file(given: Given) -> None:
    ended = given.ended["bare"]
    assert ended.code == 2
    assert "Expected: a complete transformers checkpoint in timm/bare\n" in ended.err
    assert "config.json" in ended.err.partition("Found: ")[2].splitlines()[0]
    assert "Traceback" not in ended.err
    assert not [line for line in given.hub.asked if "/timm/bare/" in line and line.endswith("model.safetensors")]
