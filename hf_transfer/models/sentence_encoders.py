"""The pooling, the length of vectors and the prompts of a sentence encoder, as its own files name them.

The library sentence-transformers saves a model as a list of modules, `modules.json`. The settings of the one that pools
are in a folder of its own, usually `1_Pooling/config.json`; prompts are in `config_sentence_transformers.json`.
Reference: Reimers & Gurevych, Sentence-BERT, EMNLP 2019, https://arxiv.org/abs/1908.10084; https://sbert.net.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple

from huggingface_hub import try_to_load_from_cache

from hf_transfer.errors import user_error
from hf_transfer.models.encoders import Pooling

MODULES_FILE, PROMPTS_FILE = "modules.json", "config_sentence_transformers.json"
# The names of sentence-transformers for what a head of ours can read. Older versions wrote one flag for each.
POOLINGS: Mapping[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}
# Modules whose work is done here, too, and dropout, which a new head has of its own: see docs/model_loading.md.
WITHOUT_NOTE = {"Transformer", "Pooling", "Normalize", "Dropout"}
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
        not_loaded: the kinds of further modules of the encoder, such as a dense layer behind the pooling.
        normalized: whether the pooled vectors are scaled to one length.
        leaves_out_prompt: whether the pooling leaves out the tokens of a prompt, as that of INSTRUCTOR does (Su et al.,
            "One embedder, any task", Findings of ACL 2023, https://arxiv.org/abs/2212.09741). That is not done here.
    """

    pooling: Pooling | None
    named: str
    file: str
    not_loaded: tuple[str, ...] = ()
    normalized: bool = False
    leaves_out_prompt: bool = False


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
    kinds = [str(one.get("type", "")).split(".")[-1] for one in modules]
    folders = [str(one["path"]) for one, kind in zip(modules, kinds, strict=True) if kind == "Pooling"]
    if not folders or PurePosixPath(folders[0]).is_absolute() or ".." in PurePosixPath(folders[0]).parts:
        return None
    name = f"{folders[0]}/config.json".removeprefix("/")
    path = file(name)
    settings = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    modes, leaves_out_prompt = _modes(settings), settings.get("include_prompt") is False
    not_loaded = tuple(kind for kind in kinds if kind not in WITHOUT_NOTE)
    # Behind a dense layer it would scale what that layer returns.
    behind = [kind for kind in kinds[kinds.index("Pooling") + 1 :] if kind != "Dropout"]
    return NamedPooling(
        POOLINGS.get(modes), modes, name, not_loaded,
        normalized=behind[:1] == ["Normalize"], leaves_out_prompt=leaves_out_prompt,
    )  # fmt: skip


class Prompts(NamedTuple):
    """The prompts of a sentence encoder: texts that it was trained to see before others.

    Attributes:
        default: the one that is put before a text if nothing else is asked for; empty: none.
        named: all of them, by name.
    """

    default: str = ""
    named: Mapping[str, str] = MappingProxyType({})


def named_prompts(file: Callable[[str], Path | None], model: str) -> Prompts:
    """The prompts that a checkpoint names.

    Args:
        file: gives a file of the checkpoint by its name; None if there is none.
        model: its name, for messages.

    Raises:
        UserError: the default is none of them, or one of them is no text.
    """
    # As in sentence-transformers, the prompts of a checkpoint without modules do not count.
    settings = file(PROMPTS_FILE) if file(MODULES_FILE) is not None else None
    if settings is None:
        return Prompts()
    content = json.loads(settings.read_text(encoding="utf-8"))
    prompts, default = content.get("prompts") or {}, content.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        wrong = f"{prompts!r:.200}"
    elif default is not None and not (isinstance(default, str) and default in prompts):
        wrong = f"default_prompt_name {default!r}, and prompts {', '.join(map(repr, prompts)) or 'none'}"
    else:
        return Prompts("" if default is None else prompts[default], prompts)
    raise user_error(
        expected=f"in {PROMPTS_FILE} of {model} prompts that are texts, and default_prompt_name one of their names",
        found=wrong,
        do="correct that file, or choose another model",
    )


def notes_on_lack(path: str, revision: str) -> tuple[str, ...]:
    """A sentence if it is not known whether a checkpoint names a pooling or a prompt: no cache and no Hub says it.

    Args:
        path: a folder or a Hub id.
        revision: the commit on the Hub, or a branch or tag.
    """
    if Path(path).is_dir() or try_to_load_from_cache(path, MODULES_FILE, revision=revision) is not None:
        return ()
    return (
        f"Whether {path} names a pooling or a prompt is not known: {MODULES_FILE} is not in the cache, "
        "and the Hub does not answer. This run does as if it named none.",
    )


def _modes(settings: Mapping[str, Any]) -> str:
    """The poolings that are used, joined by +."""
    stated = settings.get("pooling_mode")
    if stated is not None:
        return str(stated) if isinstance(stated, str) else "+".join(map(str, stated))
    return "+".join(mode for flag, mode in FLAGS.items() if settings.get(flag))
