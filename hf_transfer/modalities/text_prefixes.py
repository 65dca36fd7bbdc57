"""A prefix before every text, such as "query: ", as a part of the tokenizer itself.

Sentence encoders such as E5 were trained with one: Wang et al., "Text embeddings by weakly-supervised contrastive
pre-training", 2022, https://arxiv.org/abs/2212.03533. It is the first step of the tokenizer's normalizer, so everything
that reads `tokenizer.json` puts it before each text, also where hf_transfer is not installed.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import normalizers
from transformers import PreTrainedTokenizerBase

from hf_transfer.errors import UserError, user_error
from hf_transfer.models.loading import loading_errors
from hf_transfer.models.pretrained import Checkpoint
from hf_transfer.models.sentence_encoders import PROMPTS_FILE, named_prompts

CLASS_FILE = "tokenizer_config.json"
# Of this class transformers reads the whole tokenizer.json. Others make their own normalizer, without the prefix.
READS_ALL = "TokenizersBackend"
# Attributes that other classes have from birth.
INHERITED = ("model_input_names", "padding_side", "truncation_side")
# Texts that begin in different ways: with a word, a capital, spaces, a number, an accent, Chinese, a bracket.
PROBES = ("word and words", "Word", "  two spaces", ".5 of it", "élan vital", "文章", "(a)\n b", "x")
# So many prompts of a checkpoint are shown.
SHOWN = 4
Load = Callable[[str], PreTrainedTokenizerBase]


def chosen_prefix(checkpoint: Checkpoint, asked: str | None, trained_with: str | None) -> tuple[str, list[str]]:
    """What is put before each text, and a sentence that says why, or that a prefix might be missing.

    Args:
        checkpoint: the model.
        asked: by the settings; None: nothing is said there.
        trained_with: the prefix of a finished model; None: it is none.

    Raises:
        UserError: files of the checkpoint name prompts in another way than sentence-transformers writes them.
    """
    if asked is not None:
        return asked, [_sentence(asked, "as --text_prefix says")] if asked else []
    if trained_with is not None:
        return trained_with, [_sentence(trained_with, "as in the training of the model")] if trained_with else []
    with loading_errors(checkpoint.name):
        prompts = named_prompts(checkpoint.file, checkpoint.name)
    if prompts.default:
        why = f"as {PROMPTS_FILE} of the model says (--text_prefix '' turns this off)"
        return prompts.default, [_sentence(prompts.default, why)]
    others = [f"{name} {prompt!r}" for name, prompt in prompts.named.items() if prompt]
    if others:
        shown = ", ".join(others[:SHOWN]) + (", ..." if len(others) > SHOWN else "")
        return "", [
            f"{PROMPTS_FILE} of the model names prompts, none as the default: {shown}. Nothing is put before "
            "the texts; --text_prefix can put one of them there."
        ]
    return "", []


def with_prefix(
    tokenizer: PreTrainedTokenizerBase, prefix: str, load: Load, *, has: str = ""
) -> PreTrainedTokenizerBase:
    """The tokenizer, changed so that it makes of each text the tokens of prefix + text; an empty text stays empty.

    Args:
        tokenizer: of a checkpoint.
        prefix: what is put before each text; empty: nothing.
        load: reads a tokenizer from a folder, as it will be read from that of the finished model.
        has: the prefix that the tokenizer puts already.

    Raises:
        UserError: the tokenizer cannot do that, or does not put the prefix that it should have.
    """
    if has and _first_step(tokenizer) != has:
        raise user_error(
            expected=f"a tokenizer that puts {has!r} before each text, as the model was trained",
            found=f"{type(tokenizer).__name__} without it",
            do=f"restore tokenizer.json and {CLASS_FILE} of the model",
        )
    if prefix == has:
        return tokenizer
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise _refusal(prefix, f"{type(tokenizer).__name__}, a program in Python")
    backend: Any = tokenizer.backend_tokenizer
    steps = _steps(tokenizer)[1 if has else 0 :]
    backend.normalizer = normalizers.Sequence(steps)
    if not prefix:
        return tokenizer
    expected = _encoded(tokenizer, [prefix + text for text in PROBES])
    backend.normalizer = normalizers.Sequence([normalizers.Prepend(prefix), *steps])
    changed = tokenizer if type(tokenizer).__name__ == READS_ALL else _as_whole_file(tokenizer, load)
    if _encoded(changed, PROBES) != expected:
        raise _refusal(prefix, f"{type(tokenizer).__name__}, which makes other tokens of it than of prefix and text")
    return changed


def tokens_of_prefix(tokenizer: PreTrainedTokenizerBase, prefix: str) -> list[int]:
    """The tokens of the prefix alone, of a tokenizer that puts it before each text; empty without a prefix."""
    if not prefix:
        return []
    with _without_first_step(tokenizer):
        tokens: list[int] = tokenizer(prefix, add_special_tokens=False)["input_ids"]
    return tokens


def _steps(tokenizer: PreTrainedTokenizerBase) -> list[normalizers.Normalizer]:
    """What the tokenizer does with a text before it divides it."""
    normalizer: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if normalizer is None:
        return []
    is_several = isinstance(normalizer, normalizers.Sequence)
    return [normalizer[place] for place in range(len(normalizer))] if is_several else [normalizer]


def _first_step(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What is put before each text; None: something else is done first."""
    first = next(iter(_steps(tokenizer)), None)
    return first.prepend if isinstance(first, normalizers.Prepend) else None


@contextmanager
def _without_first_step(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    backend: Any = tokenizer.backend_tokenizer
    normalizer = backend.normalizer
    backend.normalizer = normalizers.Sequence(_steps(tokenizer)[1:])
    try:
        yield
    finally:
        backend.normalizer = normalizer


def _as_whole_file(tokenizer: PreTrainedTokenizerBase, load: Load) -> PreTrainedTokenizerBase:
    """The tokenizer in the class of transformers that reads the whole of its file."""
    tokenizer.init_kwargs |= {name: getattr(tokenizer, name) for name in INHERITED}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        file = Path(folder) / CLASS_FILE
        settings = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(settings | {"tokenizer_class": READS_ALL}), encoding="utf-8")
        return load(folder)


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[dict[str, Any]]:
    """The inputs that are made of single texts and of pairs of them."""
    return [dict(tokenizer(list(texts))), dict(tokenizer(list(texts), list(reversed(texts))))]


def _sentence(prefix: str, why: str) -> str:
    return f"{prefix!r} is put before each text, {why}."


def _refusal(prefix: str, kind: str) -> UserError:
    return user_error(
        expected=f"for --text_prefix {prefix!r} a tokenizer that can put it before each text, in its tokenizer.json",
        found=kind,
        do="use --text_prefix '' and write the prefix into the texts, or choose another --model_name_or_path",
    )
