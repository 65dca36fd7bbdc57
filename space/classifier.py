"""A finished classifier in a folder or on the Hub, and what it says of a picture, a text, or both."""

import inspect
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

# Weights from safetensors alone: a pickle can run anything when it is read.
NEEDED = ["*.safetensors", "*.json", "*.txt", "*.model", "*.py", "README.md"]
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model")
AUTO_CLASSES = {
    "ForImageClassification": "AutoModelForImageClassification",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
}
# Beyond this a tokenizer's limit is its way of saying that it has none.
LONGEST_LIMIT = 1_000_000
WITHOUT_LIMIT = 512
# In the place of a picture that is missing; the model is told, and does not look.
BLANK = (64, 64)


class NoClassifierError(ValueError):
    """MODEL_ID names something that this demo cannot serve; the reason is said in words."""


@dataclass(frozen=True)
class Question:
    """What the model is asked about: a picture, a text or a pair of texts, or both; empty texts are missing ones."""

    picture: Image.Image | None = None
    texts: tuple[str, ...] = ()


def find_model(name: str, revision: str | None = None) -> Path:
    """The folder of a model: as named, or downloaded from the Hub, only the files that are needed.

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
        texts: how many texts belong to a question, if it has any.
        max_length: tokens at which texts were cut in training; None for what the model takes.
        trust_remote_code: run the modelling file beside the weights.

    Attributes:
        labels: class names, by class number.
        takes_picture: whether a question needs a picture.
        takes_text: whether a question needs a text.
        either: whether of picture and text one may be missing.
        texts: how many texts a question has.
        model: in evaluation mode, none of its weights asks for gradients.

    Raises:
        NoClassifierError: there is no classifier in the folder.
    """

    def __init__(
        self, folder: Path, *, texts: int = 1, max_length: int | None = None, trust_remote_code: bool = False
    ) -> None:
        config = _config(folder, trust_remote_code)
        auto_class = _auto_class(config, folder, trust_remote_code)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Any = getattr(transformers, auto_class).from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=trust_remote_code
        )
        self.model.eval().requires_grad_(False).to(self.device)
        self.labels = [str(name) for _, name in sorted(self.model.config.id2label.items())]
        self.takes_picture = _has(folder, PROCESSOR_FILES) and auto_class != "AutoModelForSequenceClassification"
        self.takes_text = _has(folder, TOKENIZER_FILES) and auto_class != "AutoModelForImageClassification"
        if not (self.takes_picture or self.takes_text):
            raise NoClassifierError(f"{folder} has neither an image processor nor a tokenizer beside the model.")
        self.texts = texts if self.takes_text else 0
        told = {"image_present", "text_present"} <= inspect.signature(self.model.forward).parameters.keys()
        self.either = self.takes_picture and self.takes_text and told
        self._several = config.problem_type == "multi_label_classification"
        if self.takes_picture:
            # The same pixels with and without torchvision.
            self.processor = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
        if self.takes_text:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            if self.tokenizer.pad_token is None:
                self.tokenizer.pad_token = self.tokenizer.eos_token
            self.max_length = max_length or longest_text(self.model, self.tokenizer)

    def encode(self, questions: Sequence[Question]) -> tuple[dict[str, Tensor], BatchEncoding | None]:
        """Model inputs, and the tokens that the texts have become."""
        inputs: dict[str, Tensor] = {}
        tokens = None
        pictured = [question.picture is not None for question in questions]
        texted = [any(text.strip() for text in question.texts) for question in questions]
        if self.either:
            inputs |= {"image_present": torch.tensor(pictured), "text_present": torch.tensor(texted)}
        if self.takes_picture and (any(pictured) or not self.either):
            pictures = [question.picture or Image.new("RGB", BLANK) for question in questions]
            inputs["pixel_values"] = self.processor(pictures, return_tensors="pt")["pixel_values"]
        if self.takes_text and (any(texted) or not self.either):
            columns = [list(column) for column in zip(*(question.texts for question in questions), strict=True)]
            tokens = self.tokenizer(*columns, truncation=True, max_length=self.max_length, verbose=False)
            # A tokenizer that adds no tokens of its own makes nothing of some characters.
            for position in (position for position, ids in enumerate(tokens["input_ids"]) if not ids):
                for name in tokens:
                    tokens[name][position] = [
                        {"input_ids": self.tokenizer.pad_token_id, "attention_mask": 1}.get(name, 0)
                    ]
            inputs |= self.tokenizer.pad(dict(tokens), return_tensors="pt")
        return {name: value.to(self.device) for name, value in inputs.items()}, tokens

    @torch.inference_mode()
    def probabilities(self, questions: Sequence[Question]) -> list[list[float]]:
        """For each question the probability of each label, by class number."""
        inputs, _ = self.encode(questions)
        return self.from_logits(self.model(**inputs).logits)

    def from_logits(self, logits: Tensor) -> list[list[float]]:
        """Probabilities of what the model returns; where a sample can have several labels, each its own."""
        probabilities = logits.float().sigmoid() if self._several else logits.float().softmax(-1)
        answers: list[list[float]] = probabilities.tolist()
        return answers


def _config(folder: Path, trust_remote_code: bool) -> Any:
    if not (folder / "config.json").is_file():
        raise NoClassifierError(f"{folder} has no config.json: name a model in MODEL_ID, or put one into ./model.")
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except ValueError as error:
        own_code = "trust_remote_code" in str(error) and not trust_remote_code
        words = "the model brings code of its own: read it, and set TRUST_REMOTE_CODE=1 to have it run"
        raise NoClassifierError(f"{folder}: {words if own_code else str(error).splitlines()[0]}") from error


def _auto_class(config: Any, folder: Path, trust_remote_code: bool) -> str:
    """The class of transformers that loads the model: for its architecture, or as its own modelling file names it."""
    own = [name for name in getattr(config, "auto_map", None) or {} if name.startswith("AutoModel")]
    if own and trust_remote_code:
        return str(own[0])
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
    """How many tokens a text may have: as its tokenizer says, and as the model has positions for."""
    limits = [tokenizer.model_max_length]
    config: Any = model.config
    stated = getattr(getattr(config, "text_config", config), "max_position_embeddings", None)
    if stated and stated > 0:
        # RoBERTa and its kin count positions from behind the padding's: of 514 they have 512 for tokens.
        tables = [part for name, part in model.named_modules() if "position" in name and isinstance(part, nn.Embedding)]
        limits.append(
            stated - max((table.padding_idx + 1 for table in tables if table.padding_idx is not None), default=0)
        )
    return min((int(limit) for limit in limits if limit and 0 < limit < LONGEST_LIMIT), default=WITHOUT_LIMIT)
