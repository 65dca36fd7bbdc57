"""Load a finished model from a folder or the Hub, and predict pictures, texts, or both."""

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, BatchEncoding

from pictures import decode
from target import Target, target_of

# Weights from safetensors only: loading a pickle can run any code.
NEEDED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.py", "README.md"]
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")
AUTO_CLASSES = {
    "ForImageClassification": "AutoModelForImageClassification",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
}
# Above this, a tokenizer's limit means that it has none.
LONGEST_LIMIT = 1_000_000
WITHOUT_LIMIT = 512
# The size of the blank picture in place of a missing one, which the model ignores.
BLANK = (64, 64)


class NoClassifierError(ValueError):
    """A model that this demo cannot serve; the message says why."""


@dataclass(frozen=True)
class Sample:
    """What the model takes: a picture, a text or a pair of texts, or both; a missing text is empty."""

    picture: Image.Image | None = None
    texts: tuple[str, ...] = ()


def find_model(name: str, revision: str | None = None) -> Path:
    """The folder of a model; from the Hub only the files that are needed are downloaded.

    Args:
        name: a folder or a Hub id.
        revision: branch, tag or commit on the Hub.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    return Path(snapshot_download(name, revision=revision, allow_patterns=NEEDED, ignore_patterns=["*/*"]))


class Classifier:
    """A model with its own processor and tokenizer.

    Args:
        folder: holds the model.
        texts: number of texts of a sample, if it has texts.
        max_length: number of tokens to which texts are truncated; None: as many as the model takes.
        white: what is white in pictures of more than 8 bits; None: as each picture tells.
        least_side: see `pictures.decode`.
        trust_remote_code: run the modelling file beside the weights.

    Attributes:
        target: what is predicted.
        labels: names of the outputs, by their number.
        takes_picture: whether a sample has a picture.
        takes_text: whether a sample has a text.
        either: whether a sample may lack its picture or its text.
        texts: number of texts of a sample.
        model: in evaluation mode, without gradients for its weights.

    Raises:
        NoClassifierError: there is no classifier in the folder, or its thresholds or intervals do not suit it.
    """

    def __init__(
        self, folder: Path, *, texts: int = 1, max_length: int | None = None, white: float | None = None,
        least_side: int | None = None, trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        self._white, self._least_side = white, least_side
        config = _config(folder, trust_remote_code)
        auto_class = _auto_class(config, folder, trust_remote_code)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Any = getattr(transformers, auto_class).from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=trust_remote_code
        )
        self.model.eval().requires_grad_(False).to(self.device)
        self.target = _target(self.model.config, folder)
        self.labels = list(self.target.names)
        # A model of timm has the settings of its processor in its configuration.
        has_processor = _has(folder, PROCESSOR_FILES) or hasattr(config, "pretrained_cfg")
        self.takes_picture = has_processor and auto_class != "AutoModelForSequenceClassification"
        self.takes_text = _has(folder, TOKENIZER_FILES) and auto_class != "AutoModelForImageClassification"
        if not (self.takes_picture or self.takes_text):
            raise NoClassifierError(f"{folder} has neither an image processor nor a tokenizer beside the model.")
        self.texts = texts if self.takes_text else 0
        takes_absence = {"image_present", "text_present"} <= inspect.signature(self.model.forward).parameters.keys()
        self.either = self.takes_picture and self.takes_text and takes_absence
        if self.takes_picture:
            # The same pixels with and without torchvision.
            self.processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
        if self.takes_text:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            if self.tokenizer.pad_token is None:
                self.tokenizer.pad_token = self.tokenizer.eos_token
            self.max_length = max_length or longest_text(self.model, self.tokenizer)

    def decode(self, path: str | os.PathLike[str]) -> Image.Image:
        """A picture as in training; see `pictures.decode`."""
        return decode(path, self._white, self._least_side)

    def encode(self, samples: Sequence[Sample]) -> tuple[dict[str, Tensor], BatchEncoding | None]:
        """Model inputs, and the tokens of the texts."""
        inputs: dict[str, Tensor] = {}
        tokens = None
        have_picture = [sample.picture is not None for sample in samples]
        have_text = [any(text.strip() for text in sample.texts) for sample in samples]
        if self.either:
            inputs |= {"image_present": torch.tensor(have_picture), "text_present": torch.tensor(have_text)}
        if self.takes_picture and (any(have_picture) or not self.either):
            pictures = [sample.picture or Image.new("RGB", BLANK) for sample in samples]
            inputs["pixel_values"] = self.processor(pictures, return_tensors="pt")["pixel_values"]
        if self.takes_text and (any(have_text) or not self.either):
            columns = [list(column) for column in zip(*(sample.texts for sample in samples), strict=True)]
            tokens = self.tokenizer(*columns, truncation=True, max_length=self.max_length, verbose=False)
            # Of some characters a tokenizer without special tokens makes no token; a model needs at least one.
            for position in (position for position, ids in enumerate(tokens["input_ids"]) if not ids):
                for name in tokens:
                    tokens[name][position] = [
                        {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 1}.get(name, 0)
                    ]
            # Some models answer to padding: their run padded all texts to one length.
            length = getattr(self.model.config, "padded_length", None)
            padding = "max_length" if length else "longest"
            inputs |= self.tokenizer.pad(dict(tokens), padding=padding, max_length=length, return_tensors="pt")
        return {name: value.to(self.device) for name, value in inputs.items()}, tokens

    @torch.no_grad()
    def scores(self, samples: Sequence[Sample]) -> list[list[float]]:
        """The probability or the value of each output for each sample; see `Target.scores`."""
        inputs, _ = self.encode(samples)
        return self.target.scores(self.model(**inputs).logits)


def _config(folder: Path, trust_remote_code: bool) -> Any:
    if not (folder / "config.json").is_file():
        raise NoClassifierError(f"{folder} has no config.json: name a model in MODEL_ID, or put one into ./model.")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except ValueError as error:
        has_code = "trust_remote_code" in str(error) and not trust_remote_code
        advice = "the model has its own code: read it, and set TRUST_REMOTE_CODE=1 to run it"
        raise NoClassifierError(f"{folder}: {advice if has_code else str(error).splitlines()[0]}") from error


def _target(config: Any, folder: Path) -> Target:
    try:
        return target_of(config)
    except (ValueError, TypeError, KeyError) as error:
        raise NoClassifierError(
            f"{folder / 'config.json'} cannot be used ({type(error).__name__}: {error})."
        ) from error


def _auto_class(config: Any, folder: Path, trust_remote_code: bool) -> str:
    """The auto class of transformers that loads the model: for its architecture, or as its `auto_map` says."""
    mapped = [name for name in getattr(config, "auto_map", None) or {} if name.startswith("AutoModel")]
    if mapped and trust_remote_code:
        return str(mapped[0])
    architecture = (config.architectures or ["a model without a head"])[0]
    for ending, auto_class in AUTO_CLASSES.items():
        if architecture.endswith(ending):
            return auto_class
    raise NoClassifierError(
        f"{folder} holds {architecture}; this demo serves classes that end with {' or '.join(AUTO_CLASSES)}."
    )


def _has(folder: Path, names: Sequence[str]) -> bool:
    return any((folder / name).is_file() for name in names)


def longest_text(model: nn.Module, tokenizer: Any) -> int:
    """How many tokens a text may have: the limit of the tokenizer, or of the model's positions."""
    limits = [tokenizer.model_max_length]
    config: Any = model.config
    backbone = getattr(config, "text_config", getattr(config, "backbone_config", config))
    stated = getattr(backbone, "max_position_embeddings", None)
    if stated and stated > 0:
        # RoBERTa counts positions from behind that of the padding: of 514 it has 512 for tokens.
        tables = [part for name, part in model.named_modules() if "position" in name and isinstance(part, nn.Embedding)]
        limits.append(
            stated - max((table.padding_idx + 1 for table in tables if table.padding_idx is not None), default=0)
        )
    return min((int(limit) for limit in limits if limit and 0 < limit < LONGEST_LIMIT), default=WITHOUT_LIMIT)
