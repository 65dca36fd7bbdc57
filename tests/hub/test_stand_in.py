"""The stand-in behaves as the clients expect of the Hub: privacy, rights of tokens, commits."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.hub.clients import environment
from tests.hub.contents import Repository
from tests.hub.stand_in import FREE, READER, STRANGER, WRITER, StandIn, served, with_accounts

NAME = "alice/pets"
CONTENT = b"0123456789" * 100


def api(hub: StandIn, token: str | bool = WRITER) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=token)


@pytest.fixture
def pets(hub: StandIn) -> Repository:
    """A private repository with a large file and two small ones."""
    api(hub).create_repo(NAME, private=True)
    files = {"model.safetensors": CONTENT, "config.json": b"{}", "deep/er/notes.txt": b"x"}
    added = [CommitOperationAdd(path, content) for path, content in files.items()]
    api(hub).create_commit(NAME, added, commit_message="files")
    return hub.model(NAME)


def test_committed_files_are_listed_and_read(hub: StandIn, pets: Repository, tmp_path: Path) -> None:
    sizes = {entry.path: getattr(entry, "size", None) for entry in api(hub).list_repo_tree(NAME, recursive=True)}
    assert sizes == {
        ".gitattributes": 50, "config.json": 2, "model.safetensors": 1000, "deep": None, "deep/er": None,
        "deep/er/notes.txt": 1,
    }  # fmt: skip
    assert {entry.path for entry in api(hub).list_repo_tree(NAME, "deep")} == {"deep/er"}
    (large,) = api(hub).get_paths_info(NAME, ["model.safetensors"])
    assert large.lfs is not None  # type: ignore[union-attr]
    path = api(hub).hf_hub_download(NAME, "model.safetensors", local_dir=tmp_path)
    assert Path(path).read_bytes() == CONTENT


def test_a_commit_keeps_other_files_and_an_earlier_commit_stays_readable(hub: StandIn, pets: Repository) -> None:
    first = pets.commit
    operations: list[Any] = [CommitOperationDelete("deep/", is_folder=True), CommitOperationAdd("config.json", b"{1}")]
    second = api(hub).create_commit(NAME, operations, commit_message="less", parent_commit=first).oid
    assert sorted(pets.texts()) == [".gitattributes", "config.json", "model.safetensors"]
    assert api(hub).list_repo_files(NAME, revision=first) == sorted([*pets.texts(), "deep/er/notes.txt"])
    api(hub).create_tag(NAME, tag="v1", revision=first)
    assert api(hub).model_info(NAME, revision="v1").sha == first
    assert api(hub).model_info(NAME).sha == second


def test_a_commit_with_an_old_parent_is_refused(hub: StandIn, pets: Repository) -> None:
    old = pets.commits[0].oid
    with pytest.raises(HfHubHTTPError) as error:
        api(hub).create_commit(
            NAME, [CommitOperationAdd("a.txt", b"a")], commit_message="late", parent_commit=old
        )  # fmt: skip
    assert error.value.response.status_code == 412
    assert "a.txt" not in pets.texts()


def test_a_commit_with_an_impossible_operation_changes_nothing(hub: StandIn, pets: Repository) -> None:
    operations: list[Any] = [CommitOperationAdd("a.txt", b"a"), CommitOperationDelete("none.txt")]
    with pytest.raises(RemoteEntryNotFoundError):
        api(hub).create_commit(NAME, operations, commit_message="half")
    assert "a.txt" not in pets.texts()
    assert len(pets.commits) == 2


@pytest.mark.parametrize(
    ("token", "reads", "writes"),
    [(WRITER, 200, 200), (READER, 200, 403), (STRANGER, 404, 404), (False, 401, 401), ("hf_x", 401, 401)],
    ids=["writer", "reader", "stranger", "nobody", "unknown"],
)
def test_a_private_repository_belongs_to_its_owner(
    hub: StandIn, pets: Repository, token: str | bool, reads: int, writes: int
) -> None:
    for wanted, ask in (
        (reads, lambda: api(hub, token).model_info(NAME)),
        (writes, lambda: api(hub, token).auth_check(NAME, write=True)),
        (
            writes,
            lambda: api(hub, token).create_commit(NAME, [CommitOperationAdd("a", b"a")], commit_message="m"),
        ),
    ):
        if wanted == 200:
            ask()
            continue
        with pytest.raises(HfHubHTTPError) as error:
            ask()
        assert error.value.response.status_code == wanted
        assert isinstance(error.value, RepositoryNotFoundError) == (wanted != 403 and token not in ("hf_x",))


def test_missing_things_raise_the_errors_of_the_client(hub: StandIn, pets: Repository) -> None:
    hub.repositories["models", "org/gated"] = Repository(gated=True)
    with pytest.raises(RepositoryNotFoundError):
        api(hub).model_info("alice/none")
    with pytest.raises(RevisionNotFoundError):
        api(hub).model_info(NAME, revision="v9")
    with pytest.raises(GatedRepoError):
        api(hub).model_info("org/gated")
    with pytest.raises(HfHubHTTPError, match="409"):
        api(hub).create_repo(NAME)
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        api(hub).create_commit(NAME, [CommitOperationAdd("README.md", b"---\na: [\n---\n")], commit_message="m")


def test_a_large_file_must_be_uploaded_before_the_commit(hub: StandIn, pets: Repository) -> None:
    hub.at = lambda number, done: hub.blobs.clear() if "/commit/" in hub.asked[number - 1] else None
    with pytest.raises(BadRequestError, match="no such large file"):
        api(hub).create_commit(NAME, [CommitOperationAdd("b.safetensors", b"lost")], commit_message="m")
    assert "b.safetensors" not in pets.texts()


def test_a_space_has_secrets_variables_and_hardware_and_may_have_to_be_paid_for(hub: StandIn) -> None:
    variables = [{"key": "MODEL_ID", "value": NAME}]
    api(hub).create_repo(
        "alice/demo", repo_type="space", space_sdk="gradio", private=True, space_variables=variables,
        space_secrets=[{"key": "KEY", "value": "secret"}],
    )  # fmt: skip
    assert api(hub).get_space_variables("alice/demo")["MODEL_ID"].value == NAME
    api(hub).add_space_variable("alice/demo", "B", "b")
    api(hub).delete_space_variable("alice/demo", "MODEL_ID")
    assert set(api(hub).get_space_variables("alice/demo")) == {"B"}
    assert api(hub).request_space_hardware("alice/demo", "t4-small").hardware == "t4-small"  # type: ignore[arg-type]
    assert hub.repositories["spaces", "alice/demo"].secrets == {"KEY": "secret"}
    api(hub).update_repo_settings("alice/demo", repo_type="space", private=False)
    assert not hub.repositories["spaces", "alice/demo"].private
    api(hub).delete_repo("alice/demo", repo_type="space")
    with pytest.raises(HfHubHTTPError, match="402"):
        api(hub, FREE).create_repo("carol/demo", repo_type="space", space_sdk="gradio")
    api(hub, FREE).create_repo("carol/demo", repo_type="space", space_sdk="static")


def test_data_sets_are_pushed_and_loaded_at_a_commit(tmp_path: Path) -> None:
    """By the real clients, in a separate process."""
    script = """
import datasets, json
from huggingface_hub import HfApi
names = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["cat", "dog"])})
first = None
for texts in (["a", "b"], ["c", "d"]):
    data = datasets.Dataset.from_dict({"text": texts, "label": [0, 1]}, features=names)
    datasets.DatasetDict(train=data).push_to_hub("alice/texts", private=True)
    first = first or HfApi().dataset_info("alice/texts").sha
splits = [datasets.load_dataset("alice/texts", revision=revision)["train"] for revision in ("main", first)]
print("LOADED " + json.dumps([[data["text"][:], data.features["label"].names] for data in splits]))
"""
    with served(with_accounts()) as hub:
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment(hub.endpoint, tmp_path, WRITER), capture_output=True,
            text=True, timeout=300, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.split("LOADED ")[1]) == [[["c", "d"], ["cat", "dog"]], [["a", "b"], ["cat", "dog"]]]
    assert hub.repositories["datasets", "alice/texts"].private
