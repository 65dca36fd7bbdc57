"""The pooling that a sentence encoder was trained with, as its own files name it.

The library sentence-transformers saves a model as a list of modules, `modules.json`. The settings of the one that pools
are in a folder of its own, usually `1_Pooling/config.json`. Reference: Reimers & Gurevych, Sentence-BERT, EMNLP 2019,
https://arxiv.org/abs/1908.10084; https://sbert.net.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from huggingface_hub import try_to_load_from_cache

from hf_transfer.models.encoders import Pooling

MODULES_FILE = "modules.json"
# The names of sentence-transformers for what a head of ours can read. Older versions wrote one flag for each.
POOLINGS: Mapping[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}


class NamedPooling(NamedTuple):
    """What the files of a sentence encoder say.

    Attributes:
        pooling: for a head of ours; None: it has no such pooling.
        named: the names of sentence-transformers; empty: the file is missing, or names none.
        file: that says so.
    """

    pooling: Pooling | None
    named: str
    file: str


def named_pooling(file: Callable[[str], Path | None]) -> NamedPooling | None:
    """The pooling that a checkpoint names; None: it names none, as most do.

    Args:
        file: gives a file of the checkpoint by its name; None if there is none.
    """
    listed = file(MODULES_FILE)
    if listed is None:
        return None
    modules = json.loads(listed.read_text(encoding="utf-8"))
    # Others end in the same word, such as WeightedLayerPooling, which joins the layers of each token.
    folders = [str(one["path"]) for one in modules if str(one.get("type", "")).split(".")[-1] == "Pooling"]
    if not folders or PurePosixPath(folders[0]).is_absolute() or ".." in PurePosixPath(folders[0]).parts:
        return None
    name = f"{folders[0]}/config.json".removeprefix("/")
    settings = file(name)
    modes = "" if settings is None else _modes(json.loads(settings.read_text(encoding="utf-8")))
    return NamedPooling(POOLINGS.get(modes), modes, name)


def notes_on_lack(path: str, revision: str) -> tuple[str, ...]:
    """A sentence if nobody knows whether a checkpoint names a pooling: the Hub did not answer, and no cache says so.

    Args:
        path: a folder or a Hub id.
        revision: the commit on the Hub, or a branch or tag.
    """
    if Path(path).is_dir() or try_to_load_from_cache(path, MODULES_FILE, revision=revision) is not None:
        return ()
    return (
        f"Whether {path} names the pooling that it was trained with is not known: {MODULES_FILE} is not in the cache, "
        "and the Hub does not answer. This run does as if it named none.",
    )


def _modes(settings: Mapping[str, Any]) -> str:
    """The poolings that are used, joined by +."""
    stated = settings.get("pooling_mode")
    if stated is not None:
        return str(stated) if isinstance(stated, str) else "+".join(map(str, stated))
    return "+".join(mode for flag, mode in FLAGS.items() if settings.get(flag))
