"""Publish a folder on the Hub in one commit: only files of an allow-list, and none that contains a secret."""

import re
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import httpx2
import huggingface_hub
import huggingface_hub.constants
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_session

from hf_transfer.data.hub_account import Kind, explaining_hub_errors, find_destination, is_temporary
from hf_transfer.errors import user_error
from hf_transfer.evaluation.run_folder import PICTURES

# What loading a model needs, and its card. No pickle is among these files, and nothing that is there by accident.
MODEL_FILES = (
    "README.md", "config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors",
    "model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors", "preprocessor_config.json",
    "processor_config.json", "preprocessing.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "bpe.codes", "spiece.model", "spm.model",
    "tokenizer.model", "sentencepiece.bpe.model", "chat_template.jinja", "modeling_*.py", "fusion.py", *PICTURES,
)  # fmt: skip
SPACE_FILES = (
    "README.md", "*.py", "requirements.txt", "packages.txt", "*.css", "*.html", "*.js", "examples/*.png",
    "examples/*.jpg", "examples/*.jpeg", "examples/*.webp", "examples/*.json", "examples/*.csv", "examples.json",
    "about.md", "settings.json",
)  # fmt: skip
ALLOWED: dict[Kind, tuple[str, ...]] = {
    "model": MODEL_FILES,
    # A private model is a part of its Space, which is then private, too.
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
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
LONGEST_HEADER = 100_000_000
ATTEMPTS = 3
SECONDS_BETWEEN = 2.0
LONGEST_PAUSE = 60.0
# The client itself has no limit.
LONGEST_SILENCE = 120.0
Result = TypeVar("Result")


@dataclass(frozen=True)
class Published:
    """A repository with what was published.

    Attributes:
        url: of its page.
        revision: the commit, 40 hexadecimal digits.
    """

    url: str
    revision: str


def publish_folder(folder: Path, repository: str, *, kind: Kind, private: bool, message: str) -> Published:
    """Upload a folder to a repository in one commit; in none, if nothing has changed.

    The repository is created if it does not exist. The same commit removes files of an earlier upload that the folder
    has no longer; files that are not in `ALLOWED` stay. If this is interrupted, the repository is in its old or its
    new state, and the same call completes it.

    Args:
        folder: what to publish; files that are not in `ALLOWED` are not uploaded.
        repository: OWNER/NAME.
        kind: model or space.
        private: hide it from others; a repository that is public already is refused then.
        message: of the commit.

    Raises:
        UserError: a file contains a secret, the token may not write there, or the Hub refuses.
    """
    files = files_to_publish(folder, kind)
    with explaining_hub_errors(f"{folder} on the Hub as {repository}"):
        create_repository(repository, kind=kind, private=private)
        return with_retries(lambda: _commit(files, repository, kind, message))


def create_repository(repository: str, *, kind: Kind, private: bool) -> None:
    """Create the repository if it does not exist; the Hub then says whether the token may.

    Args:
        repository: OWNER/NAME.
        kind: model or space.
        private: hide it from others.

    Raises:
        UserError: see `find_destination`; or the Hub refuses.
    """
    if find_destination(repository, kind=kind, private=private).exists:
        return
    sdk = "gradio" if kind == "space" else None
    with explaining_hub_errors(f"a new repository {repository} on the Hub"):
        with_retries(
            lambda: HfApi().create_repo(repository, repo_type=kind, private=private, exist_ok=True, space_sdk=sdk)
        )


def visibility(private: bool) -> list[str]:
    """The flag of a command that publishes."""
    return [] if private else ["--hub_private_repo", "false"]


def files_to_publish(folder: Path, kind: Kind) -> dict[str, Path]:
    """The files of a folder that may be published, by their paths in the repository.

    Raises:
        UserError: there is nothing to publish, or a file contains a secret.
    """
    by_name = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    allowed = {name: path for name, path in by_name.items() if _allowed(name, kind)}
    if not allowed:
        raise user_error(
            expected=f"files of a {kind} in {folder}",
            found="none" if folder.is_dir() else "no such folder",
            do="name the --output_dir of a finished run",
        )
    secrets = [f"{name}, {line}: {what}" for name, path in allowed.items() for line, what in secrets_in(path)]
    if secrets:
        raise user_error(
            expected="files without secrets",
            found="; ".join(secrets),
            do="remove them, and revoke a secret that others may have seen",
        )
    return allowed


def secrets_in(path: Path) -> Iterator[tuple[str, str]]:
    """Line and kind of everything in a file that looks like a secret; never the secret itself."""
    if path.suffix.lower() in PICTURE_SUFFIXES:
        return
    patterns = {what: re.compile(pattern) for what, pattern in SECRETS.items()}
    if token := huggingface_hub.get_token():
        patterns["your own token"] = re.compile(re.escape(token))
    for number, line in enumerate(_text_of(path).splitlines(), start=1):
        for what, pattern in patterns.items():
            if pattern.search(line):
                yield f"line {number}", what


def _text_of(path: Path) -> str:
    """The text of a file; of safetensors the header, which may contain notes."""
    if path.suffix != ".safetensors":
        return path.read_bytes().decode("utf-8", errors="replace")
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        return file.read(min(length, LONGEST_HEADER)).decode("utf-8", errors="replace")


def _allowed(name: str, kind: Kind) -> bool:
    # From the root, a pattern is compared folder by folder: a star does not match a slash.
    return any(PurePosixPath("/", name).match(f"/{pattern}") for pattern in ALLOWED[kind])


def with_retries(request: Callable[[], Result]) -> Result:
    """The result of a request, which is repeated if the Hub is down or busy; it must be safe to repeat."""
    for attempt in range(1, ATTEMPTS + 1):
        get_session().timeout = httpx2.Timeout(LONGEST_SILENCE)
        try:
            return request()
        except Exception as error:
            if attempt == ATTEMPTS or not is_temporary(error):
                raise
            response = getattr(error, "response", None)
            pause = response.headers.get("Retry-After", "") if response is not None else ""
            time.sleep(min(LONGEST_PAUSE, float(pause) if pause.isdigit() else SECONDS_BETWEEN * attempt))
    raise AssertionError("the last attempt returns or raises")


def _commit(files: dict[str, Path], repository: str, kind: Kind, message: str) -> Published:
    api = HfApi()
    head = api.repo_info(repository, repo_type=kind)
    assert head.sha is not None, "every repository has a commit"
    existing = api.list_repo_files(repository, repo_type=kind, revision=head.sha)
    stale = [path for path in existing if path not in files and _allowed(path, kind)]
    operations: list[CommitOperationAdd | CommitOperationDelete] = [CommitOperationDelete(path) for path in stale]
    operations += [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
    # `HfApi.upload_folder` would make several commits. The parent makes the Hub refuse if others have pushed since.
    commit = api.create_commit(repository, operations, repo_type=kind, commit_message=message, parent_commit=head.sha)
    prefix = "spaces/" if kind == "space" else ""
    return Published(f"{huggingface_hub.constants.ENDPOINT}/{prefix}{repository}", commit.oid)
