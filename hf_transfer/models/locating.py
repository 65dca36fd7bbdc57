"""Where checkpoints are: in a folder, among the samples, or on the Hub; without torch, so that this is known early."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

from hf_transfer.data import hub_access
from hf_transfer.data.sample_models import backbone_folder
from hf_transfer.data.samples import is_sample
from hf_transfer.errors import user_error
from hf_transfer.settings.run import RunConfig


class Location(NamedTuple):
    """Where a checkpoint is.

    Attributes:
        path: what it is loaded from: a folder, or its Hub id.
        commit: on the Hub; None for a folder, and where the commit is not known.
        offline: the Hub did not answer.
    """

    path: str
    commit: str | None = None
    offline: bool = False


# By name, revision and setting; None: each is located anew.
_LOCATIONS: ContextVar[dict[tuple[str, str, str], Location] | None] = ContextVar("locations", default=None)


@contextmanager
def located_once() -> Iterator[None]:
    """Inside, a run: the Hub is asked for a checkpoint once, and not again if it does not answer."""
    token = _LOCATIONS.set({})
    try:
        yield
    finally:
        _LOCATIONS.reset(token)


def locate(name: str, revision: str, setting: str) -> Location:
    """Find a checkpoint; of one on the Hub nothing is downloaded.

    Args:
        name: a Hub id, a local folder, or sample:NAME.
        revision: branch, tag or commit on the Hub.
        setting: the setting in which the user names the checkpoint.

    Raises:
        UserError: it does not exist.
    """
    known, question = _LOCATIONS.get(), (name, revision, setting)
    if known is not None and question in known:
        return known[question]
    location = _location(name, revision, setting)
    if known is not None:
        known[question] = location
    return location


def _location(name: str, revision: str, setting: str) -> Location:
    if is_sample(name):
        return Location(str(backbone_folder(name)))
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise user_error(
                expected=f"a saved model with a config.json in {path}",
                found="a folder without one",
                do="name the folder that holds config.json and model.safetensors",
            )
        return Location(str(path))
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise user_error(
            expected="a model: a local folder, a Hub id, or sample:NAME",
            found=f"no folder {path}",
            do=f"correct --{setting}",
        )
    answer = hub_access.ask_hub(name, kind="model", revision=revision)
    return Location(name, hub_access.commit_of(name, revision, answer), answer is None)


def locate_before_download(config: RunConfig) -> None:
    """Before a data set on the Hub is downloaded, find the models of a run. Data on this machine come first.

    Raises:
        UserError: a model does not exist.
    """
    if not hub_access.is_hub_id(config.data.dataset_name):
        return
    values = config.flat()
    for setting, name in config.named_models.items():
        locate(name, values[setting.replace("name_or_path", "revision")], setting)
