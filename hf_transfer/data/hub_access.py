"""Asking the Hub once, briefly, before anything relies on it; all that follows is of the commit that it named."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import datasets.config
import httpx2
import huggingface_hub.constants
from huggingface_hub import HfApi, is_offline_mode
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from hf_transfer.config import mistake
from hf_transfer.data.samples import is_sample

ANSWER_WITHIN_SECONDS = 3.0


def cache_folder(named: str | None) -> Path:
    """Where checks and activations are kept: the folder that the settings name, or one beside the Hub's."""
    return Path(named) if named else Path(huggingface_hub.constants.HF_HOME) / "hf_transfer"


def is_valid_name(repository: str) -> bool:
    """Whether the Hub allows the name."""
    try:
        validate_repo_id(repository)
    except HFValidationError:
        return False
    return True


def is_hub_id(name: str) -> bool:
    """Whether a name stands for a repository on the Hub, and for nothing here."""
    return not is_sample(name) and not Path(name).expanduser().exists() and is_valid_name(name)


@dataclass(frozen=True)
class Found:
    """What the Hub says of a repository.

    Attributes:
        commit: what the revision stands for at the moment, 40 hexadecimal digits.
        languages: codes of the languages that its card names.
    """

    commit: str
    languages: tuple[str, ...] = ()


def ask_hub(repository: str, *, kind: Literal["model", "dataset"], revision: str) -> Found | None:
    """What the Hub says of a repository that it knows and lets us read; None if the Hub cannot be reached.

    Raises:
        UserError: the Hub answers that the repository is missing, gated, or lacks that revision, or the name is none.
    """
    if not is_valid_name(repository):
        raise mistake(
            expected=f"a {kind}: a folder here, a Hub id (OWNER/NAME), or sample:NAME",
            found=f"{repository!r}: no such folder here, and no name that the Hub allows",
            do="correct the name",
        )
    if is_offline_mode():
        return None
    try:
        about = HfApi().repo_info(repository, repo_type=kind, revision=revision, timeout=ANSWER_WITHIN_SECONDS)
    except GatedRepoError as error:
        raise mistake(
            expected=f"a {kind} that your account may read",
            found=f"{repository} is gated, and your account has no access yet",
            do=f"accept its terms on its page on the Hub, then `hf auth login` (page: {_page(repository, kind)})",
        ) from error
    except RevisionNotFoundError as error:
        raise mistake(
            expected=f"a branch, tag or commit of {repository}", found=revision, do=f"correct --{kind}_revision"
        ) from error
    except RepositoryNotFoundError as error:
        raise mistake(
            expected=f"a {kind} on the Hub, a local path, or sample:NAME",
            found=f"{repository}: no such folder here, and no such {kind} on the Hub (or it is private)",
            do="correct the name, or `hf auth login` if the repository is private",
        ) from error
    except (HfHubHTTPError, httpx2.HTTPError, OSError):
        return None
    card = getattr(about, "card_data", None)
    named = (card.get("language") if card else None) or []
    assert about.sha is not None, "the Hub names the commit of every repository"
    return Found(about.sha, tuple([named] if isinstance(named, str) else map(str, named)))


def commit_of(model: str, revision: str, found: Found | None) -> str | None:
    """The commit that all files of a model are to be loaded from, which the cache remembers for times without the Hub.

    It is what the revision stands for now; without an answer from the Hub, what it stood for when it was cached. None
    if the cache does not know it either.
    """
    try:
        return HfApi().resolve_revision(model, revision=revision, local_files_only=found is None).resolved
    except (RevisionResolutionError, HfHubHTTPError, httpx2.HTTPError):
        return None


def unreachable(repository: str, *, kind: Literal["model", "dataset"], setting: str) -> Exception:
    """The error for a repository that is neither reachable nor in the local cache."""
    return mistake(
        expected=f"the {kind} {repository} on the Hub or in the local cache",
        found=f"no answer from {huggingface_hub.constants.ENDPOINT} and no copy in {huggingface_hub.constants.HF_HOME}",
        do=f"connect to the network, or point --{setting} at a local folder",
    )


@contextmanager
def local_files_only(enabled: bool) -> Iterator[None]:
    """Keep the libraries from asking an unreachable Hub again: each such question can wait 23 seconds.

    They read their switches from the environment when they are imported, hence the constants.
    """
    if not enabled:
        yield
        return
    with (
        patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True),
        patch.object(datasets.config, "HF_HUB_OFFLINE", True),
    ):
        yield


def _page(repository: str, kind: str) -> str:
    prefix = "datasets/" if kind == "dataset" else ""
    return f"{huggingface_hub.constants.ENDPOINT}/{prefix}{repository}"
