"""A folder becomes a repository on the Hub: files that are allowed, none with a secret in it, in one commit."""

import fnmatch
import re
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import httpx2
import huggingface_hub
import huggingface_hub.constants
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session

from hf_transfer.config import mistake
from hf_transfer.data.hub_account import Destination, Kind, failing_in_words, find_destination, passing

# What a model needs where it is loaded, and its card. No pickle is among it, and nothing that is there by accident.
MODEL_FILES = (
    "README.md", "config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors",
    "model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors", "preprocessor_config.json",
    "processor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.txt", "vocab.json", "merges.txt", "bpe.codes", "spiece.model", "spm.model", "tokenizer.model",
    "sentencepiece.bpe.model", "chat_template.jinja", "modeling_*.py", "fusion.py", "curves.png", "confusion.png",
)  # fmt: skip
SPACE_FILES = (
    "README.md", "*.py", "requirements.txt", "packages.txt", "*.css", "examples/*.png", "examples/*.jpg",
    "examples/*.jpeg", "examples/*.webp", "examples/*.json", "examples/*.csv", "examples.json", "about.md",
    "settings.json",
)  # fmt: skip
ALLOWED: dict[Kind, tuple[str, ...]] = {
    "model": MODEL_FILES,
    # A private model lies in its equally private Space.
    "space": (*SPACE_FILES, *(f"model/{name}" for name in MODEL_FILES)),
}
SECRETS = {
    "a token of the Hub": r"\b(?:hf|api_org)_[A-Za-z0-9]{34}\b",
    "a key of AWS": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a private key": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----",
    "a token of GitHub": r"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{82})\b",
    "a token of Slack": r"\bxox[abprs]-[A-Za-z0-9-]{20,}",
    "a key of Google": r"\bAIza[0-9A-Za-z_-]{35}\b",
    "a key of OpenAI": r"\bsk-(?:proj-)?[A-Za-z0-9_-]{40,}\b",
    "a key of Weights & Biases": r"WANDB_API_KEY\W{1,4}[0-9a-f]{40}\b",
}
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
LONGEST_HEADER = 100_000_000
ATTEMPTS = 3
SECONDS_BETWEEN = 2.0
LONGEST_PAUSE = 60.0
# The client itself waits for ever.
LONGEST_SILENCE = 120.0
Result = TypeVar("Result")


@dataclass(frozen=True)
class Published:
    """Where it is.

    Attributes:
        url: of the repository's page.
        revision: the commit that holds it, 40 hexadecimal digits.
    """

    url: str
    revision: str


def publish_folder(folder: Path, repository: str, *, kind: Kind, private: bool, message: str) -> Published:
    """Make a repository hold what a folder holds, in one commit; none if it holds it already.

    The repository is made if there is none. Files of an earlier push that the folder has no longer are removed in the
    same commit; any that were not ours to push stay. Wherever this is interrupted, the repository is as it was or as it
    is to be, and the same call completes it.

    Args:
        folder: what to publish; files that `ALLOWED` does not name stay here.
        repository: OWNER/NAME.
        kind: model or space.
        private: hide it from others; a repository that is public already is refused then.
        message: of the commit.

    Raises:
        UserError: a file with a secret, a token that may not write there, or a Hub that does not take it.
    """
    files = files_to_publish(folder, kind)
    with failing_in_words(f"{folder} on the Hub as {repository}"):
        make_ready(find_destination(repository, kind=kind, private=private), private=private)
        return patiently(lambda: _commit(files, repository, kind, message))


def make_ready(destination: Destination, *, private: bool) -> None:
    """Make the repository if there is none: the Hub's own word on whether the token may."""
    if destination.exists:
        return
    with failing_in_words(f"a new repository {destination.name} on the Hub"):
        patiently(
            lambda: HfApi().create_repo(
                destination.name,
                repo_type=destination.kind,
                private=private,
                exist_ok=True,
                space_sdk="gradio" if destination.kind == "space" else None,
            )
        )


def files_to_publish(folder: Path, kind: Kind) -> dict[str, Path]:
    """Path in the repository -> file, of all that may be published.

    Raises:
        UserError: there is nothing to publish, or a file has a secret in it.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    chosen = {name: path for name, path in named.items() if _allowed(name, kind)}
    if not chosen:
        raise mistake(
            expected=f"files of a {kind} in {folder}",
            found="none" if folder.is_dir() else "no such folder",
            do="name the --output_dir of a finished run",
        )
    found = [f"{name}, {where}: {what}" for name, path in chosen.items() for where, what in secrets_in(path)]
    if found:
        raise mistake(
            expected="files without secrets",
            found="; ".join(found),
            do="remove what is named here; a secret that has been seen elsewhere is to be revoked, too",
        )
    return chosen


def secrets_in(path: Path) -> Iterator[tuple[str, str]]:
    """Where a file has what looks like a secret, and what; never the secret itself."""
    if path.suffix.lower() in PICTURES:
        return
    patterns = {what: re.compile(pattern) for what, pattern in SECRETS.items()}
    if token := huggingface_hub.get_token():
        patterns["your own token"] = re.compile(re.escape(token))
    for number, line in enumerate(_text_of(path).splitlines(), start=1):
        for what, pattern in patterns.items():
            if pattern.search(line):
                yield f"line {number}", what


def _text_of(path: Path) -> str:
    """What can be read in a file: of safetensors their header, where notes may stand."""
    if path.suffix != ".safetensors":
        return path.read_bytes().decode("utf-8", errors="replace")
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        return file.read(min(length, LONGEST_HEADER)).decode("utf-8", errors="replace")


def _allowed(name: str, kind: Kind) -> bool:
    # Folder by folder: a star is not to reach into folders.
    parts = name.split("/")
    return any(
        len(parts) == len(pattern.split("/"))
        and all(map(fnmatch.fnmatchcase, parts, pattern.split("/")))
        for pattern in ALLOWED[kind]
    )  # fmt: skip


def patiently(do: Callable[[], Result]) -> Result:
    """What `do` returns, asked again where the Hub is in trouble or busy; it must be safe to be repeated."""
    for attempt in range(1, ATTEMPTS + 1):
        get_session().timeout = httpx2.Timeout(LONGEST_SILENCE)
        try:
            return do()
        except Exception as error:
            if attempt == ATTEMPTS or not passing(error):
                raise
            answer = getattr(error, "response", None)
            asked = answer.headers.get("Retry-After", "") if answer is not None else ""
            time.sleep(min(LONGEST_PAUSE, float(asked) if asked.isdigit() else SECONDS_BETWEEN * attempt))
    raise AssertionError("the last attempt returns or raises")


def _commit(files: dict[str, Path], repository: str, kind: Kind, message: str) -> Published:
    api = HfApi()
    head = api.repo_info(repository, repo_type=kind)
    assert head.sha is not None, "the Hub names the commit of every repository"
    stale = [path for path in _paths(api, repository, kind, head.sha) if path not in files and _allowed(path, kind)]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()),
        *(CommitOperationDelete(path_in_repo=path) for path in stale),
    ]
    # With its parent: what others have pushed since would otherwise be changed unseen.
    done = api.create_commit(
        repository, list(operations), repo_type=kind, commit_message=message, parent_commit=head.sha
    )  # fmt: skip
    prefix = "spaces/" if kind == "space" else ""
    return Published(f"{huggingface_hub.constants.ENDPOINT}/{prefix}{repository}", done.oid)


def _paths(api: HfApi, repository: str, kind: Kind, commit: str) -> Sequence[str]:
    return api.list_repo_files(repository, repo_type=kind, revision=commit)
