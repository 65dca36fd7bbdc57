"""What models of images with texts have in common: two pretrained towers, one vector of each, and answers.

This file is saved beside such a model, whose own file imports it, and needs only torch and transformers.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, PretrainedConfig, PreTrainedModel

# How the outputs of a tower are reduced to one vector.
POOLINGS = ("pooler", "first", "mean", "first_and_others")
# Names of the inputs that only one tower reads; the first of them is None if all samples lack this part.
INPUTS = {"image": ("pixel_values",), "text": ("input_ids", "attention_mask", "token_type_ids")}
MODALITIES = tuple(INPUTS)


class PairConfig(PretrainedConfig):
    """The configurations of both towers.

    Attributes:
        image_config: configuration of the image tower.
        text_config: configuration of the text tower.
        image_pooling: how the image tower's outputs become one vector: its `pooler`, the `first` or the `mean` of all
            patches, or the first beside the mean of the others, `first_and_others`.
        text_pooling: the same for the tokens of the text tower, without padding.
    """

    sub_configs = {"image_config": AutoConfig, "text_config": AutoConfig}  # noqa: RUF012 - as transformers declares it
    # `save_pretrained` writes it into `auto_map`, and copies the file of the class.
    _auto_class = "AutoConfig"

    # Written out instead of a dataclass, so that other versions of transformers accept it, too.
    def __init__(
        self,
        image_config: PretrainedConfig | dict[str, Any] | None = None,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        *,
        image_pooling: str = "first",
        text_pooling: str = "mean",
        **kwargs: Any,
    ) -> None:
        if not {image_pooling, text_pooling} <= set(POOLINGS):
            raise ValueError(f"a pooling is one of {POOLINGS}, not {image_pooling!r}, {text_pooling!r}")
        self.image_config = _config_of(image_config, "vit")
        self.text_config = _config_of(text_config, "bert")
        self.image_pooling, self.text_pooling = image_pooling, text_pooling
        super().__init__(**kwargs)


class PairModel(PreTrainedModel):
    """Two towers, and answers to images, to texts, and to both together; a subclass has the head.

    Args:
        config: the architecture.
        image_tower: a loaded tower of `config.image_config`; None makes one with fresh weights.
        text_tower: a loaded tower of `config.text_config`; None makes one with fresh weights.
    """

    config_class = PairConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    _auto_class = "AutoModel"
    # transformers' Trainer would otherwise pass a number of samples for the loss, which `forward` ignores.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(
        self,
        config: PairConfig,
        image_tower: PreTrainedModel | None = None,
        text_tower: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        self.loss_type = "ForSequenceClassification"  # Otherwise the name of the class decides.
        self.image_tower = image_tower or _tower(config.image_config, pooler=config.image_pooling == "pooler")
        self.text_tower = text_tower or _tower(config.text_config, pooler=config.text_pooling == "pooler")
        config.image_config, config.text_config = self.image_tower.config, self.text_tower.config
        self.supports_gradient_checkpointing = (
            self.image_tower.supports_gradient_checkpointing and self.text_tower.supports_gradient_checkpointing
        )

    @torch.no_grad()
    def predict(self, image: Any = None, text: Any = None, *, top_k: int | None = 5) -> Any:
        """Labels with their probabilities, the most likely first; of a regression its outputs, the largest first.

        The scores are those of a pipeline of transformers: thresholds of labels are not applied.

        Args:
            image: a PIL image or the path of a file; None if it is missing; or a list of these.
            text: a string; None if it is missing; or a list of these.
            top_k: how many labels; None for all.

        Returns:
            A list of {"label", "score"}, or a list of such lists if a list was given.
        """
        is_list = isinstance(image, list | tuple) or isinstance(text, list | tuple)
        count = max(len(given) for given in (image, text) if isinstance(given, list | tuple)) if is_list else 1
        images, texts = _as_list(image, count), _as_list(text, count)
        if any(one is None and other is None for one, other in zip(images, texts, strict=True)):
            raise ValueError("an image or a text must be given, or both")
        was_training = self.training
        self.train(False)
        try:
            logits = self(**self._inputs(images, texts)).logits
        finally:
            self.train(was_training)
        rankings = [self._ranked(row, top_k) for row in logits.float()]
        return rankings if is_list else rankings[0]

    @cached_property
    def _processor(self) -> Any:
        # The same pixels with and without torchvision, and no other code of the folder than that of the model.
        return AutoImageProcessor.from_pretrained(self.name_or_path, backend="pil", trust_remote_code=False)

    @cached_property
    def _tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.name_or_path, trust_remote_code=False)

    def _ranked(self, outputs: Tensor, top_k: int | None) -> list[dict[str, Any]]:
        if self.config.problem_type != "regression":
            each_alone = self.config.problem_type == "multi_label_classification" or len(outputs) == 1
            outputs = outputs.sigmoid() if each_alone else outputs.softmax(-1)
        scores, numbers = outputs.topk(min(top_k or len(outputs), len(outputs)))
        names: Any = self.config.id2label
        pairs = zip(numbers.tolist(), scores.tolist(), strict=True)
        return [{"label": names[number], "score": score} for number, score in pairs]

    def _inputs(self, images: Sequence[Any], texts: Sequence[str | None]) -> dict[str, Tensor]:
        """Inputs of `forward`, made by the image processor and the tokenizer that are saved with the weights."""
        from PIL import Image

        inputs: dict[str, Any] = {
            "image_present": torch.tensor([image is not None for image in images]),
            "text_present": torch.tensor([text is not None for text in texts]),
        }
        if any(image is not None for image in images):
            opened = [Image.open(image) if isinstance(image, str | Path) else image for image in images]
            upright = [image and _upright_in_rgb(image) for image in opened]
            blank = Image.new("RGB", (64, 64))
            inputs |= self._processor([image or blank for image in upright], return_tensors="pt")
        if any(text is not None for text in texts):
            tokens = self._tokenizer([text or "" for text in texts], truncation=True)
            length = getattr(self.config, "padded_length", None)
            padding = {"padding": "max_length", "max_length": length} if length else {"padding": True}
            inputs |= self._tokenizer.pad(tokens, **padding, return_tensors="pt")
        return {name: value.to(self.device) for name, value in inputs.items()}


def _upright_in_rgb(picture: Any) -> Any:
    """The picture as its EXIF tag says it is turned.

    `ImageOps.exif_transpose` writes all other tags again, and fails if one of them has a wrong type.
    """
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }  # fmt: skip
    # Some formats have this tag behind their pixels.
    picture.load()
    turn = turns.get(picture.getexif().get(0x0112))
    return (picture if turn is None else picture.transpose(turn)).convert("RGB")


def _config_of(config: PretrainedConfig | dict[str, Any] | None, default_type: str) -> PretrainedConfig:
    # A copy: `super().__init__` resets its attention implementation, which would change a model in use.
    settings = config.to_dict() if isinstance(config, PretrainedConfig) else config or {}
    # transformers makes a configuration without arguments, to compare others with its defaults.
    return AutoConfig.for_model(**{"model_type": default_type, **settings})


def _tower(config: PretrainedConfig, *, pooler: bool) -> PreTrainedModel:
    """A tower with fresh weights, in the precision in which the whole model is made."""
    dtype, options = torch.get_default_dtype(), {} if pooler else {"add_pooling_layer": False}
    tower: PreTrainedModel
    try:
        tower = AutoModel.from_config(config, dtype=dtype, **options)
    except TypeError:
        # It has no pooler that could be left out.
        tower = AutoModel.from_config(config, dtype=dtype)
    except ValueError:
        # AutoModel knows only one half of some dual encoders, such as SigLIP.
        tower = getattr(transformers, type(config).__name__.removesuffix("Config") + "Model")(config)
    return tower


def present_of(present: Tensor | None, values: Tensor | None, given: Tensor) -> Tensor:
    """Which samples have a modality [batch]; `values` are its inputs, `given` those of any modality."""
    if values is None or present is None:
        return torch.full((len(given),), values is not None, device=given.device)
    return present.bool()


def as_sequence(hidden: Tensor) -> Tensor:
    """[batch, patches, width]; also of the maps of a convolution [batch, width, height of the map, its width]."""
    return hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden


def pooled(kind: str, output: Any, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """One vector of a tower's outputs [batch, width]; see `PairConfig`."""
    if kind == "pooler":
        pooler_output: Tensor = output.pooler_output
        return pooler_output.flatten(1)
    if kind == "first_and_others":
        return torch.cat([hidden[:, 0], mean_of(hidden[:, 1:], None if mask is None else mask[:, 1:])], 1)
    return hidden[:, 0] if kind == "first" else mean_of(hidden, mask)


def mean_of(vectors: Tensor, mask: Tensor | None) -> Tensor:
    """The mean without padding [batch, width] of [batch, length, width], summed in single precision."""
    if mask is None:
        return vectors.float().mean(1).to(vectors.dtype)
    padding = (mask == 0)[:, :, None]
    total = vectors.float().masked_fill(padding, 0.0).sum(1)
    return (total / (~padding).sum(1).clamp(min=1)).to(vectors.dtype)


def _as_list(given: Any, count: int) -> list[Any]:
    values = list(given) if isinstance(given, list | tuple) else [given] * count
    if len(values) != count:
        raise ValueError(f"the numbers of images and texts must be equal, not {count} and {len(values)}")
    return values
