"""Models and data sets on the Hub: refused, missing, out of reach, cached, and really downloaded."""

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.hub.clients import Ended, a_data_set, a_model, several_runs
from tests.hub.contents import Repository, cache_by_hand
from tests.hub.stand_in import StandIn, served

# After imports; a Hub that does not answer is asked once, for 3 seconds. The rest is for a busy machine: the clients
# alone would wait for 23 seconds, for each of the three files of a model.
LONGEST_SECONDS, LONGEST_WITH_TRAINING = 20.0, 60.0


def assert_refused(ended: Ended, expected: str, found: str, do: str) -> None:
    assert ended.code == 2, ended.err
    assert f"Expected: {expected}\n" in ended.err
    assert f"Found:    {found}\n" in ended.err
    assert f"Do this:  {do}\n" in ended.err
    assert "Traceback" not in ended.err


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[StandIn, dict[str, Ended]]]:
    """Runs against a Hub that answers."""
    root = tmp_path_factory.mktemp("answering")
    a_data_set(root / "pets")
    hub = StandIn()
    hub.repositories["models", "org/gated"] = hub.repositories["datasets", "org/gated"] = Repository(gated=True)
    hub.repositories["models", "org/tiny"] = Repository(a_model(root / "model"))
    hub.repositories["datasets", "org/pets"] = hub.repositories["datasets", "org/birds"] = Repository(root / "pets")
    runs: dict[str, dict[str, object]] = {
        "gated model": {"model_name_or_path": "org/gated"},
        "gated data": {"dataset_name": "org/gated"},
        "missing model": {"model_name_or_path": "org/missing"},
        "missing data": {"dataset_name": "org/missing"},
        "missing model beside data": {"model_name_or_path": "org/missing", "dataset_name": "org/birds"},
        "revision of the model": {"model_name_or_path": "org/tiny", "model_revision": "v9"},
        "revision of the data": {"dataset_name": "org/pets", "dataset_revision": "v9"},
        "works": {"model_name_or_path": "org/tiny", "dataset_name": "org/pets", "strategy": "full"},
    }
    with served(hub):
        yield hub, several_runs(hub.endpoint, root / "home", runs)


@pytest.mark.parametrize(("kind", "word", "prefix"), [("model", "model", ""), ("data", "dataset", "datasets/")])
def test_a_gated_repository_is_named_with_the_page_to_accept_its_terms(
    answering: tuple[StandIn, dict[str, Ended]], kind: str, word: str, prefix: str
) -> None:
    """An error of the user, before anything slow."""
    hub, ended = answering
    assert_refused(
        ended[f"gated {kind}"],
        f"a {word} that your account may read",
        "org/gated is gated, and your account has no access yet",
        f"accept its terms on its page on the Hub, then `hf auth login` (page: {hub.endpoint}/{prefix}org/gated)",
    )


@pytest.mark.parametrize(("kind", "word"), [("model", "model"), ("data", "dataset")])
def test_a_missing_repository_is_named(answering: tuple[StandIn, dict[str, Ended]], kind: str, word: str) -> None:
    """It may be private: the Hub does not say."""
    assert_refused(
        answering[1][f"missing {kind}"],
        f"a {word} on the Hub, a local path, or sample:NAME",
        f"org/missing: no such folder here, and no such {word} on the Hub (or it is private)",
        "correct the name, or `hf auth login` if the repository is private",
    )


def test_a_missing_model_is_named_before_a_data_set_is_downloaded(answering: tuple[StandIn, dict[str, Ended]]) -> None:
    hub, ended = answering
    assert "no such model on the Hub" in ended["missing model beside data"].err
    assert not [request for request in hub.asked if "org/birds" in request]


def test_the_hub_is_not_asked_again_for_a_model_that_was_looked_for_early(
    answering: tuple[StandIn, dict[str, Ended]],
) -> None:
    """And for the commit of the model, whose answer is kept for later runs; in the only run that works."""
    hub, _ = answering
    assert hub.asked.count("GET /api/models/org/tiny/revision/main") == 2


@pytest.mark.parametrize(
    ("kind", "name", "flag"),
    [("model", "org/tiny", "--model_revision"), ("data", "org/pets", "--dataset_revision")],
)
def test_a_revision_that_does_not_exist_is_named(
    answering: tuple[StandIn, dict[str, Ended]], kind: str, name: str, flag: str
) -> None:
    """With the setting to correct."""
    ended = answering[1][f"revision of the {kind}"]
    assert_refused(ended, f"a branch, tag or commit of {name}", "v9", f"correct {flag}")


def test_a_public_model_and_data_set_are_downloaded_and_trained(
    answering: tuple[StandIn, dict[str, Ended]],
) -> None:
    """The whole way, over the real clients."""
    hub, ended = answering
    assert ended["works"].code == 0, ended["works"].err
    assert "full from org/tiny on org/pets" in ended["works"].out
    assert "images of 2 classes" in ended["works"].out
    files = [question for question in hub.asked if "/org/tiny/resolve/" in question and "safetensors" in question]
    assert any(question.startswith("GET") for question in files)


@pytest.fixture(scope="module", params=["closed", "hanging"])
def silent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Runs without a Hub: nobody listens on its port, or somebody listens and never answers."""
    root = tmp_path_factory.mktemp(request.param)
    a_data_set(root / "pets")
    cache_by_hand(root / "home/hub", "org/cached", a_model(root / "model"))
    runs: dict[str, dict[str, object]] = {
        "model": {"model_name_or_path": "org/far"},
        "data": {"dataset_name": "org/far"},
        "cached": {"model_name_or_path": "org/cached", "strategy": "full"},
    }
    if request.param == "hanging":
        with served(StandIn(hangs=True)) as hub:
            ended = several_runs(hub.endpoint, root / "home", runs)
            # Each run has asked once, and then no more.
            assert hub.asked == [
                "GET /api/models/org/far/revision/main", "GET /api/datasets/org/far/revision/main",
                "GET /api/models/org/cached/revision/main",
            ]  # fmt: skip
            yield hub.endpoint, root / "home", ended
    else:
        with socket.socket() as port:
            # Bound, but nobody listens: connections are refused, and no other process can take the port.
            port.bind(("127.0.0.1", 0))
            endpoint = f"http://127.0.0.1:{port.getsockname()[1]}"
            yield endpoint, root / "home", several_runs(endpoint, root / "home", runs)


@pytest.mark.parametrize(
    ("kind", "word", "setting"), [("model", "model", "model_name_or_path"), ("data", "dataset", "dataset_name")]
)
def test_without_the_hub_the_repository_is_named_within_seconds(
    silent: Any, kind: str, word: str, setting: str
) -> None:
    """Asked once, for 3 seconds."""
    endpoint, home, ended = silent
    assert_refused(
        ended[kind],
        f"the {word} org/far on the Hub or in the local cache",
        f"no answer from {endpoint} and no copy in {home}",
        f"connect to the network, or point --{setting} at a local folder",
    )
    assert ended[kind].seconds < LONGEST_SECONDS


@pytest.mark.slow
def test_without_the_hub_a_model_in_the_cache_is_trained_all_the_same(silent: Any) -> None:
    """After the first request without an answer, only local files are used."""
    _, _, ended = silent
    assert ended["cached"].code == 0, ended["cached"].err
    assert "full from org/cached on" in ended["cached"].out
    assert ended["cached"].seconds < LONGEST_WITH_TRAINING


def test_a_switch_for_local_files_is_put_back() -> None:
    """Even if loading fails."""
    import datasets.config
    import huggingface_hub.constants as constants

    from hf_transfer.data.hub_access import local_files_only

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        with local_files_only(False):
            assert (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == (False, False)
        with contextlib.suppress(OSError), local_files_only(True):
            assert (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == (True, True)
            raise OSError("inside")
        assert (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == (False, False)


def test_with_the_hub_switched_off_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_HUB_OFFLINE=1 asks for."""
    from huggingface_hub import HfApi

    from hf_transfer.data.hub_access import ask_hub

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(HfApi, "repo_info", forbidden)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert ask_hub("org/far", kind="model", revision="main") is None
