"""A model of images with texts: two pretrained towers, each with a projection, and a head that sees both.

This file is saved with the weights and needs only torch and transformers. An image or a text may be missing:

    model = AutoModel.from_pretrained("path/to/this/folder", trust_remote_code=True)
    model.predict(image="cup.jpg", text="blue, holds 300 ml")
    model.predict(text="blue, holds 300 ml")

References: projections, late fusion and their sizes are those of Tang et al., "AutoGluon-Multimodal", AutoML 2024,
https://arxiv.org/abs/2404.16233; the gate is that of Arevalo et al., "Gated multimodal units for information fusion",
ICLR workshop 2017, https://arxiv.org/abs/1702.01992; learned vectors for missing modalities, and modality dropout in
training, are those of Shi et al., "Bag of tricks for multimodal AutoML with image, text, and tabular data", 2024,
https://arxiv.org/abs/2412.16243.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoTokenizer, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput  # type: ignore[attr-defined]

FUSIONS = ("concat", "gated", "product", "attention")
# How the outputs of a tower are reduced to one vector.
POOLINGS = ("pooler", "first", "mean")
# In the order of the learned vectors that replace missing ones.
MODALITIES = ("image", "text")


class FusionConfig(PretrainedConfig):
    """The configurations of both towers, and how their outputs are combined.

    Attributes:
        image_config: configuration of the image tower.
        text_config: configuration of the text tower.
        image_width: width of the image tower's vectors.
        text_width: width of the text tower's vectors.
        image_pooling: how the image tower's outputs become one vector: its `pooler`, the `first` or the `mean` of all
            patches.
        text_pooling: the same for the tokens of the text tower, without padding.
        fusion: `concat` concatenates both vectors, `gated` takes a learned weighted sum, `product` adds their product
            and their absolute difference to `concat`, `attention` adds attention of the tokens to the patches.
        hidden_size: width of both projections.
        head_size: width of the head's inner layer.
        dropout: before the head's last layer.
        modality_dropout: share of the complete samples whose image or text is hidden in training.
        attention_heads: number of heads of `attention`.
    """

    model_type = "image_text_classifier"
    sub_configs = {"image_config": AutoConfig, "text_config": AutoConfig}  # noqa: RUF012 - as transformers declares it
    # `save_pretrained` writes it into `auto_map`, and copies this file.
    _auto_class = "AutoConfig"

    # Written out instead of a dataclass, so that other versions of transformers accept it, too.
    def __init__(
        self,
        image_config: PretrainedConfig | dict[str, Any] | None = None,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        *,
        image_width: int = 768,
        text_width: int = 768,
        image_pooling: str = "first",
        text_pooling: str = "mean",
        fusion: str = "concat",
        hidden_size: int = 768,
        head_size: int = 128,
        dropout: float = 0.1,
        modality_dropout: float = 0.2,
        attention_heads: int = 4,
        **kwargs: Any,
    ) -> None:
        if fusion not in FUSIONS or not {image_pooling, text_pooling} <= set(POOLINGS):
            raise ValueError(
                f"fusion is one of {FUSIONS} and a pooling one of {POOLINGS}, "
                f"not {fusion!r}, {image_pooling!r}, {text_pooling!r}"
            )
        self.image_config = _config_of(image_config, "vit")
        self.text_config = _config_of(text_config, "bert")
        self.image_width, self.text_width = image_width, text_width
        self.image_pooling, self.text_pooling = image_pooling, text_pooling
        self.fusion, self.hidden_size, self.head_size = fusion, hidden_size, head_size
        self.dropout, self.modality_dropout, self.attention_heads = dropout, modality_dropout, attention_heads
        super().__init__(**kwargs)


@dataclass
class FusionOutput(ModelOutput):
    """Outputs of the model.

    Attributes:
        loss: of `logits`, if labels were given.
        logits: of image and text together [batch, labels].
        image_logits: of the image alone [batch, labels]; meaningless where it is missing.
        text_logits: of the text alone [batch, labels]; meaningless where it is missing.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    image_logits: Tensor | None = None
    text_logits: Tensor | None = None


class FusionModel(PreTrainedModel):
    """Two towers, a projection and a head for each, and a head for both.

    Args:
        config: the architecture.
        image_tower: a loaded tower of `config.image_config`; None makes one with fresh weights.
        text_tower: a loaded tower of `config.text_config`; None makes one with fresh weights.
    """

    config_class = FusionConfig
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
        config: FusionConfig,
        image_tower: PreTrainedModel | None = None,
        text_tower: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config)
        self.loss_type = "ForSequenceClassification"  # Otherwise the name of the class decides.
        labels, width = config.num_labels or 0, config.hidden_size
        self.image_tower = image_tower or _tower(config.image_config, pooler=config.image_pooling == "pooler")
        self.text_tower = text_tower or _tower(config.text_config, pooler=config.text_pooling == "pooler")
        config.image_config, config.text_config = self.image_tower.config, self.text_tower.config
        self.supports_gradient_checkpointing = (
            self.image_tower.supports_gradient_checkpointing and self.text_tower.supports_gradient_checkpointing
        )
        self.image_projection = nn.Linear(config.image_width, width)
        self.text_projection = nn.Linear(config.text_width, width)
        self.image_norm, self.text_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.missing = nn.Embedding(len(MODALITIES), width)
        self.image_classifier = nn.Linear(width, labels)
        self.text_classifier = nn.Linear(width, labels)
        self.mixture = _Fusion(config)
        self.inner = nn.Sequential(
            nn.Linear(self.mixture.width, config.head_size),
            nn.LeakyReLU(),
            nn.LayerNorm(config.head_size),
            nn.Dropout(config.dropout),
        )
        self.classifier = nn.Linear(config.head_size, labels)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        image_present: Tensor | None = None,
        text_present: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> FusionOutput | tuple[Tensor, ...]:
        """Logits of both together and of each alone, and the loss of the former if there are labels.

        Args:
            pixel_values: images [batch, channels, height, width]; a missing one is ignored; None if all are missing.
            input_ids: tokens [batch, length]; a missing text is ignored; None if all are missing.
            attention_mask: 1 for a token, 0 for padding [batch, length]; None if nothing is padded.
            token_type_ids: which text of a pair [batch, length], for a tower that takes it.
            image_present: whether a sample has an image [batch]; None if all have, or none has pixel values.
            text_present: whether a sample has a text [batch]; None if all have, or none has tokens.
            labels: classes [batch], or 0.0 and 1.0 or numbers [batch, labels], as `config.problem_type` says.
            return_dict: False for a tuple; None: as the configuration says.
        """
        given = pixel_values if pixel_values is not None else input_ids
        if given is None:
            raise ValueError("pixel_values or input_ids must be given, or both")
        has_image = _present(image_present, pixel_values, given)
        has_text = _present(text_present, input_ids, given)
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        patches, image = self._vectors("image", has_image, pixel_values=pixel_values)
        tokens, text = self._vectors("text", has_text, input_ids=input_ids, attention_mask=attention_mask, **types)
        # Before modality dropout: the heads of single modalities learn from all samples.
        single_logits = self.image_classifier(image), self.text_classifier(text)
        if self.training and self.config.modality_dropout > 0.0:
            has_image, has_text = _dropped(has_image, has_text, self.config.modality_dropout)
            patches, image = self._masked("image", has_image, patches, image)
            tokens, text = self._masked("text", has_text, tokens, text)
        fused = self.mixture(image, text, has_image, has_text, patches, tokens, attention_mask)
        logits = self.classifier(self.inner(fused))
        loss = None if labels is None else self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        output = FusionOutput(loss, logits, *single_logits)
        as_output = self.config.return_dict if return_dict is None else return_dict
        return output if as_output else output.to_tuple()

    def _vectors(self, modality: str, present: Tensor, **inputs: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """Vectors of the parts [batch, length, width], for attention only, and of images or texts [batch, width].

        Args:
            modality: image, whose parts are patches, or text, whose parts are tokens.
            present: whether a sample has an image or a text [batch].
            **inputs: of the tower; the first is None if all images or texts are missing.
        """
        if next(iter(inputs.values())) is None:
            return None, self.missing.weight[MODALITIES.index(modality)].expand(len(present), -1)
        tower, projection, norm = (self.get_submodule(f"{modality}_{part}") for part in ("tower", "projection", "norm"))
        output = tower(**inputs)
        hidden = as_sequence(output.last_hidden_state)
        pooling = getattr(self.config, f"{modality}_pooling")
        vector = norm(projection(pooled(pooling, output, hidden, inputs.get("attention_mask"))))
        parts = norm(projection(hidden)) if self.mixture.has_attention else None
        return self._masked(modality, present, parts, vector)

    def _masked(
        self, modality: str, present: Tensor, parts: Tensor | None, vector: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """The same vectors; those of missing images or texts are replaced by the learned one."""
        row = MODALITIES.index(modality)
        if parts is not None:
            parts = torch.where(present[:, None, None], parts, self.missing.weight[row])
        return parts, torch.where(present[:, None], vector, self.missing.weight[row])

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
        # The same pixels with and without torchvision, and no other code of the folder than this file.
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
        from PIL import Image, ImageOps

        inputs: dict[str, Any] = {
            "image_present": torch.tensor([image is not None for image in images]),
            "text_present": torch.tensor([text is not None for text in texts]),
        }
        if any(image is not None for image in images):
            opened = [Image.open(image) if isinstance(image, str | Path) else image for image in images]
            upright = [image and ImageOps.exif_transpose(image).convert("RGB") for image in opened]
            blank = Image.new("RGB", (64, 64))
            inputs |= self._processor([image or blank for image in upright], return_tensors="pt")
        if any(text is not None for text in texts):
            tokens = self._tokenizer([text or "" for text in texts], truncation=True)
            length = getattr(self.config, "padded_length", None)
            padding = {"padding": "max_length", "max_length": length} if length else {"padding": True}
            inputs |= self._tokenizer.pad(tokens, **padding, return_tensors="pt")
        return {name: value.to(self.device) for name, value in inputs.items()}


class _Fusion(nn.Module):
    """Combines the vector of an image and the vector of a text into one vector.

    Args:
        config: the kind of fusion, and the widths.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        width, self.kind = config.hidden_size, config.fusion
        self.has_attention = config.fusion == "attention"
        # Two more numbers say whether image and text are present.
        self.width = {"concat": 2, "gated": 1, "product": 4, "attention": 3}[config.fusion] * width + 2
        if self.kind == "gated":
            self.gate = nn.Linear(2 * width + 2, width)
        if self.has_attention:
            self.attention = nn.MultiheadAttention(width, config.attention_heads, batch_first=True)
            self.norm = nn.LayerNorm(width)

    def forward(
        self, image: Tensor, text: Tensor, has_image: Tensor, has_text: Tensor, patches: Tensor | None,
        tokens: Tensor | None, mask: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """[batch, `self.width`] of two [batch, width]; only attention needs `patches` and `tokens`."""
        present = torch.stack([has_image, has_text], 1).to(image.dtype)
        if self.kind == "gated":
            gate = self.gate(torch.cat([image, text, present], 1)).sigmoid()
            return torch.cat([gate * image + (1 - gate) * text, present], 1)
        parts = [image, text]
        if self.kind == "product":
            parts += [image * text, (image - text).abs()]
        if self.has_attention:
            keys = image[:, None] if patches is None else patches
            queries = text[:, None] if tokens is None else tokens
            attended = self.norm(queries + self.attention(queries, keys, keys, need_weights=False)[0])
            parts.append(_mean(attended, mask if tokens is not None else None))
        return torch.cat([*parts, present], 1)


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


def _present(present: Tensor | None, values: Tensor | None, given: Tensor) -> Tensor:
    """Which samples have a modality [batch]; `values` are its inputs, `given` those of any modality."""
    if values is None or present is None:
        return torch.full((len(given),), values is not None, device=given.device)
    return present.bool()


def _dropped(has_image: Tensor, has_text: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Hide the image of some complete samples and the text of as many others."""
    drawn = torch.rand(len(has_image), device=has_image.device)
    complete = has_image & has_text
    return has_image & ~(complete & (drawn < share / 2)), has_text & ~(complete & (drawn >= 1 - share / 2))


def as_sequence(hidden: Tensor) -> Tensor:
    """[batch, patches, width]; also of the maps of a convolution [batch, width, height of the map, its width]."""
    return hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden


def pooled(kind: str, output: Any, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """One vector of a tower's outputs [batch, width]; see `FusionConfig.image_pooling`."""
    if kind == "pooler":
        pooler_output: Tensor = output.pooler_output
        return pooler_output.flatten(1)
    return hidden[:, 0] if kind == "first" else _mean(hidden, mask)


def _mean(vectors: Tensor, mask: Tensor | None) -> Tensor:
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
