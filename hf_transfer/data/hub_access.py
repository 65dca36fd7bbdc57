"""One short request to the Hub before anything relies on it; all files are then those of the commit that it named."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import httpx2
from huggingface_hub import HfApi, constants, errors, is_offline_mode
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from hf_transfer.data.samples import is_sample
from hf_transfer.errors import user_error

ANSWER_WITHIN_SECONDS = 3.0
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
# Where HF_HOME cannot be written to: see `checkpoints.caches`.
other_home: Path | None = None
SET_HOME = "set HF_HOME to a folder that you can write to"


def cache_folder(named: str | None) -> Path:
    """The folder for results of checks and for activations: the one in the settings, or one beside the Hub's cache."""
    return Path(named) if named else (other_home or Path(constants.HF_HOME)) / "hf_transfer"


def is_valid_name(repository: str) -> bool:
    """Whether the Hub allows the name."""
    try:
        validate_repo_id(repository)
    except errors.HFValidationError:
        return False
    return True


def is_hub_id(name: str) -> bool:
    """Whether a name can only be that of a repository on the Hub: it is no path on this machine and no sample."""
    return not is_sample(name) and not Path(name).expanduser().exists() and is_valid_name(name)


@dataclass(frozen=True)
class RepositoryInfo:
    """What the Hub says of a repository.

    Attributes:
        commit: the commit of the revision at the moment, 40 hexadecimal digits.
        languages: codes of the languages in its card.
    """

    commit: str
    languages: tuple[str, ...] = ()


def ask_hub(repository: str, *, kind: Literal["model", "dataset"], revision: str) -> RepositoryInfo | None:
    """What the Hub says of a repository; None if the Hub cannot be reached.

    Raises:
        UserError: the repository is missing, gated, or lacks that revision, or its name is not valid.
    """
    if not is_valid_name(repository):
        raise user_error(
            expected=f"a {kind}: a folder here, a Hub id (OWNER/NAME), or sample:NAME",
            found=f"{repository!r}: no such folder here, and not a name that the Hub allows",
            do="correct the name",
        )
    if is_offline_mode():
        return None
    try:
        info = HfApi().repo_info(repository, repo_type=kind, revision=revision, timeout=ANSWER_WITHIN_SECONDS)
    except errors.GatedRepoError as error:
        page = f"{constants.ENDPOINT}/{constants.REPO_TYPES_URL_PREFIXES.get(kind, '')}{repository}"
        raise user_error(
            expected=f"a {kind} that your account may read",
            found=f"{repository} is gated, and your account has no access yet",
            do=f"accept its terms on its page on the Hub, then `hf auth login` (page: {page})",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise user_error(
            expected=f"a branch, tag or commit of {repository}", found=revision, do=f"correct --{kind}_revision"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise user_error(
            expected=f"a {kind} on the Hub, a local path, or sample:NAME",
            found=f"{repository}: no such folder here, and no such {kind} on the Hub (or it is private)",
            do="correct the name, or `hf auth login` if the repository is private",
        ) from error
    except (errors.HfHubHTTPError, httpx2.HTTPError, OSError):
        return None
    card = getattr(info, "card_data", None)
    languages = (card.get("language") if card else None) or []
    assert info.sha is not None, "the Hub names the commit of every repository"
    return RepositoryInfo(info.sha, tuple([languages] if isinstance(languages, str) else map(str, languages)))


def commit_of(model: str, revision: str, info: RepositoryInfo | None) -> str | None:
    """The commit that all files of a model are loaded from.

    Args:
        model: its Hub id.
        revision: branch, tag or commit.
        info: what the Hub says of it; None without an answer: then the commit is the one in the local cache.

    Returns:
        The commit; None if there is no answer and no copy in the cache.
    """
    try:
        return HfApi().resolve_revision(model, revision=revision, local_files_only=info is None).resolved
    except (errors.RevisionResolutionError, errors.HfHubHTTPError, httpx2.HTTPError):
        return None


def unreachable(repository: str, *, kind: Literal["model", "dataset"], setting: str) -> Exception:
    """The error for a repository that is neither reachable nor in the local cache."""
    return user_error(
        expected=f"the {kind} {repository} on the Hub or in the local cache",
        found=f"no answer from {constants.ENDPOINT} and no copy in {constants.HF_HOME}",
        do=f"connect to the network, or point --{setting} at a local folder",
    )


def refuse_cache_without_rights(error: BaseException | None) -> None:
    """Name HF_HOME if an error, or one of its causes, is that the cache of the Hub cannot be written to.

    Raises:
        UserError: it is.
    """
    import datasets.config

    roots = [Path(root) for root in (constants.HF_HOME, constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE)]
    cause = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in NOT_WRITABLE and cause.filename:
            path = Path(os.fsdecode(cause.filename)).absolute()
            # A missing folder is created from above.
            if any(path.is_relative_to(root) or root.is_relative_to(path) for root in roots):
                raise user_error(
                    expected="a cache that can be written to", found=f"{cause.strerror}: {path}", do=SET_HOME
                ) from error
        cause = cause.__cause__ or cause.__context__


@contextmanager
def local_files_only(enabled: bool) -> Iterator[None]:
    """Keep the libraries from sending further requests to an unreachable Hub: each of them can take 23 seconds."""
    if not enabled:
        yield
        return
    import datasets.config

    # The libraries read the environment only when they are imported: after that, only their constants count.
    with patch.object(constants, "HF_HUB_OFFLINE", True), patch.object(datasets.config, "HF_HUB_OFFLINE", True):
        yield
