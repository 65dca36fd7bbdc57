"""A classifier of images with texts: two pretrained towers, each with a projection, and a head that sees both.

This file lies beside the weights and needs torch and transformers alone. An image or a text may be missing:

    model = AutoModel.from_pretrained("path/to/this/folder", trust_remote_code=True)
    model.predict(image="cup.jpg", text="blue, holds 300 ml")
    model.predict(text="blue, holds 300 ml")

References: projections, late fusion and their sizes as in Tang et al., "AutoGluon-Multimodal", AutoML 2024,
https://arxiv.org/abs/2404.16233; the gate is that of Arevalo et al., "Gated multimodal units for information fusion",
ICLR workshop 2017, https://arxiv.org/abs/1702.01992; learned vectors for what is missing, and modalities that are
dropped in training, as in Shi et al., "Bag of tricks for multimodal AutoML with image, text, and tabular data", 2024,
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
# How the outputs of a tower become one vector.
POOLINGS = ("pooler", "first", "mean")


class FusionConfig(PretrainedConfig):
    """The configurations of both towers, and how what they say becomes one.

    Attributes:
        image_config: the image tower's own configuration.
        text_config: the text tower's own configuration.
        image_width: features that the image tower gives; likewise `text_width`.
        image_pooling: of the image tower's outputs: its own `pooler`, the `first` or the `mean` of all places.
        text_pooling: of the text tower's, likewise, without padding.
        fusion: `concat` lays both vectors side by side, `gated` weighs them against each other, `product` adds what
            they share and where they differ, `attention` lets the words look at the places of the image.
        hidden_size: width of both projections.
        head_size: width of the head's inner layer.
        dropout: in front of the head's last layer.
        modality_dropout: share of complete samples that lose their image or their text in training.
        attention_heads: of `attention`.
    """

    model_type = "image_text_classifier"
    sub_configs = {"image_config": AutoConfig, "text_config": AutoConfig}  # noqa: RUF012 - as transformers declares it
    # What `save_pretrained` writes into `auto_map`, and why it copies this file.
    _auto_class = "AutoConfig"

    # Written out, not left to a dataclass: transformers of other years take it, too.
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
        self.image_config = _own_config(image_config, "vit")
        self.text_config = _own_config(text_config, "bert")
        self.image_width, self.text_width = image_width, text_width
        self.image_pooling, self.text_pooling = image_pooling, text_pooling
        self.fusion, self.hidden_size, self.head_size = fusion, hidden_size, head_size
        self.dropout, self.modality_dropout, self.attention_heads = dropout, modality_dropout, attention_heads
        super().__init__(**kwargs)


@dataclass
class FusionOutput(ModelOutput):
    """What the model says.

    Attributes:
        loss: cross-entropy, if there were labels.
        logits: of image and text together [batch, labels].
        image_logits: of the image alone [batch, labels]; they mean nothing where it is missing.
        text_logits: of the text alone, likewise.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    image_logits: Tensor | None = None
    text_logits: Tensor | None = None


class FusionModel(PreTrainedModel):
    """Two towers, a projection and a head for each, and a head for both.

    Args:
        config: what to build.
        image_tower: loaded already, and of `config.image_config`; None makes one with fresh weights.
        text_tower: likewise.
    """

    config_class = FusionConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    _auto_class = "AutoModel"
    # The rest of what `forward` is given is no count of samples for a Trainer's loss.
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
        # In the place of a vector that is missing: a row for images, one for texts.
        self.missing = nn.Embedding(2, width)
        self.image_classifier = nn.Linear(width, labels)
        self.text_classifier = nn.Linear(width, labels)
        self.mixture = _Mixture(config)
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
            pixel_values: images [batch, channels, height, width]; anything where one is missing; None if all are.
            input_ids: tokens [batch, length]; anything where a text is missing; None if all are.
            attention_mask: 1 for a token, 0 for padding [batch, length]; None if nothing is padded.
            token_type_ids: which text of a pair [batch, length], for a tower that takes it.
            image_present: whether there is an image [batch]; None if all are there that were given.
            text_present: likewise.
            labels: class numbers [batch].
            return_dict: False for a tuple, as transformers has it.
        """
        given = pixel_values if pixel_values is not None else input_ids
        if given is None:
            raise ValueError("pixel_values or input_ids must be given, or both")
        has_image = _present(image_present, pixel_values, given)
        has_text = _present(text_present, input_ids, given)
        places, image = self.image_features(pixel_values, has_image)
        words, text = self.text_features(input_ids, attention_mask, token_type_ids, has_text)
        # The heads of single modalities learn also from what is dropped for the one of both.
        alone = self.image_classifier(image), self.text_classifier(text)
        if self.training and self.config.modality_dropout > 0.0:
            has_image, has_text = _dropped(has_image, has_text, self.config.modality_dropout)
            (places, image), (words, text) = (
                (None if seen is None else self._masked(seen, there, row), self._masked(whole, there, row))
                for row, (seen, whole, there) in enumerate(((places, image, has_image), (words, text, has_text)))
            )
        mixed = self.mixture(image, text, has_image, has_text, places, words, attention_mask)
        logits = self.classifier(self.inner(mixed))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        found = FusionOutput(loss, logits, *alone)
        named = self.config.return_dict if return_dict is None else return_dict
        return found if named else found.to_tuple()

    def image_features(self, pixel_values: Tensor | None, present: Tensor) -> tuple[Tensor | None, Tensor]:
        """Of images that are there: each place [batch, places, width], for attention, and the whole [batch, width]."""
        if pixel_values is None:
            return None, self.missing.weight[0].expand(len(present), -1)
        output = self.image_tower(pixel_values=pixel_values)
        places = as_places(output.last_hidden_state)
        whole = self.image_norm(self.image_projection(pooled(self.config.image_pooling, output, places, None)))
        seen = self.image_norm(self.image_projection(places)) if self.mixture.looks else None
        return None if seen is None else self._masked(seen, present, 0), self._masked(whole, present, 0)

    def text_features(
        self, input_ids: Tensor | None, mask: Tensor | None, token_type_ids: Tensor | None, present: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        """Of texts that are there: each word [batch, length, width], for attention, and the whole [batch, width]."""
        if input_ids is None:
            return None, self.missing.weight[1].expand(len(present), -1)
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        output = self.text_tower(input_ids=input_ids, attention_mask=mask, **more)
        tokens = output.last_hidden_state
        whole = self.text_norm(self.text_projection(pooled(self.config.text_pooling, output, tokens, mask)))
        words = self.text_norm(self.text_projection(tokens)) if self.mixture.looks else None
        return None if words is None else self._masked(words, present, 1), self._masked(whole, present, 1)

    def _masked(self, vectors: Tensor, present: Tensor, row: int) -> Tensor:
        """What is learned in the place of vectors [batch, ..., width] of samples that lack them."""
        there = present.reshape(-1, *[1] * (vectors.ndim - 1))
        return torch.where(there, vectors, self.missing.weight[row])

    @torch.no_grad()
    def predict(self, image: Any = None, text: Any = None, *, top_k: int | None = 5) -> Any:
        """Labels with their probabilities, the likeliest first.

        Args:
            image: a PIL image or the path of a file; None if there is none; or a list of these.
            text: a string; None if there is none; or a list of these.
            top_k: how many labels; None for all.

        Returns:
            A list of {"label", "score"}, or a list of such lists if a list was given.
        """
        many = isinstance(image, list | tuple) or isinstance(text, list | tuple)
        count = max(len(given) for given in (image, text) if isinstance(given, list | tuple)) if many else 1
        images, texts = _as_list(image, count), _as_list(text, count)
        if any(one is None and other is None for one, other in zip(images, texts, strict=True)):
            raise ValueError("an image or a text must be given, or both")
        was_training = self.training
        self.train(False)
        try:
            logits = self(**self._inputs(images, texts)).logits
        finally:
            self.train(was_training)
        found = [self._ranked(row, top_k) for row in logits.float().softmax(-1)]
        return found if many else found[0]

    @cached_property
    def _processor(self) -> Any:
        # The same pixels with and without torchvision, and no other code of the folder than this.
        return AutoImageProcessor.from_pretrained(self.name_or_path, backend="pil", trust_remote_code=False)

    @cached_property
    def _tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.name_or_path, trust_remote_code=False)

    def _ranked(self, probabilities: Tensor, top_k: int | None) -> list[dict[str, Any]]:
        scores, numbers = probabilities.topk(min(top_k or len(probabilities), len(probabilities)))
        names: Any = self.config.id2label
        return [
            {"label": names[place], "score": score}
            for place, score in zip(numbers.tolist(), scores.tolist(), strict=True)
        ]

    def _inputs(self, images: Sequence[Any], texts: Sequence[str | None]) -> dict[str, Tensor]:
        """What `forward` takes, by the image processor and the tokenizer that lie beside the weights."""
        from PIL import Image, ImageOps

        given: dict[str, Any] = {
            "image_present": torch.tensor([image is not None for image in images]),
            "text_present": torch.tensor([text is not None for text in texts]),
        }
        if any(image is not None for image in images):
            opened = [Image.open(image) if isinstance(image, str | Path) else image for image in images]
            upright = [image and ImageOps.exif_transpose(image).convert("RGB") for image in opened]
            blank = Image.new("RGB", (64, 64))
            given |= self._processor([image or blank for image in upright], return_tensors="pt")
        if any(text is not None for text in texts):
            words = [text or "" for text in texts]
            given |= self._tokenizer(words, padding=True, truncation=True, return_tensors="pt")
        return {name: value.to(self.device) for name, value in given.items()}


class _Mixture(nn.Module):
    """One vector of an image's and a text's.

    Args:
        config: which fusion, and how wide.
    """

    def __init__(self, config: FusionConfig) -> None:
        super().__init__()
        width, self.kind = config.hidden_size, config.fusion
        # Whether it looks at places and words, and not only at the whole.
        self.looks = config.fusion == "attention"
        # Two numbers say what is there.
        self.width = {"concat": 2, "gated": 1, "product": 4, "attention": 3}[config.fusion] * width + 2
        if self.kind == "gated":
            self.gate = nn.Linear(2 * width + 2, width)
        if self.looks:
            self.attention = nn.MultiheadAttention(width, config.attention_heads, batch_first=True)
            self.norm = nn.LayerNorm(width)

    def forward(
        self, image: Tensor, text: Tensor, has_image: Tensor, has_text: Tensor, places: Tensor | None,
        words: Tensor | None, mask: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """[batch, `self.width`] of [batch, width] each; `places` and `words` for attention alone."""
        there = torch.stack([has_image, has_text], 1).to(image.dtype)
        if self.kind == "gated":
            gate = self.gate(torch.cat([image, text, there], 1)).sigmoid()
            return torch.cat([gate * image + (1 - gate) * text, there], 1)
        parts = [image, text]
        if self.kind == "product":
            parts += [image * text, (image - text).abs()]
        if self.looks:
            keys = image[:, None] if places is None else places
            queries = text[:, None] if words is None else words
            looked = self.norm(queries + self.attention(queries, keys, keys, need_weights=False)[0])
            parts.append(_mean(looked, mask if words is not None else None))
        return torch.cat([*parts, there], 1)


def _own_config(config: PretrainedConfig | dict[str, Any] | None, otherwise: str) -> PretrainedConfig:
    # A copy: what follows sets its attention implementation back, which a model in use would notice.
    settings = config.to_dict() if isinstance(config, PretrainedConfig) else config or {}
    # Without arguments transformers makes one, to know what is special about another.
    return AutoConfig.for_model(**{"model_type": otherwise, **settings})


def _tower(config: PretrainedConfig, *, pooler: bool) -> PreTrainedModel:
    """A tower with fresh weights, in the precision that the whole model is made in."""
    dtype, more = torch.get_default_dtype(), {} if pooler else {"add_pooling_layer": False}
    tower: PreTrainedModel
    try:
        tower = AutoModel.from_config(config, dtype=dtype, **more)
    except TypeError:
        tower = AutoModel.from_config(config, dtype=dtype)
    except ValueError:
        # Of some dual encoders, SigLIP for one, AutoModel knows only one half.
        tower = getattr(transformers, type(config).__name__.removesuffix("Config") + "Model")(config)
    return tower


def _present(stated: Tensor | None, values: Tensor | None, given: Tensor) -> Tensor:
    if values is None:
        return torch.zeros(len(given), dtype=torch.bool, device=given.device)
    if stated is None:
        return torch.ones(len(given), dtype=torch.bool, device=given.device)
    return stated.bool()


def _dropped(has_image: Tensor, has_text: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Of complete samples some lose their image, as many their text, none both."""
    drawn = torch.rand(len(has_image), device=has_image.device)
    complete = has_image & has_text
    return has_image & ~(complete & (drawn < share / 2)), has_text & ~(complete & (drawn >= 1 - share / 2))


def as_places(hidden: Tensor) -> Tensor:
    """[batch, places, width], also of a convolution's maps [batch, width, height, width of the map]."""
    return hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden


def pooled(kind: str, output: Any, places: Tensor, mask: Tensor | None) -> Tensor:
    """One vector of a tower's outputs [batch, width]; see `FusionConfig.image_pooling`."""
    if kind == "pooler":
        own: Tensor = output.pooler_output
        return own.flatten(1)
    return places[:, 0] if kind == "first" else _mean(places, mask)


def _mean(vectors: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of all that count [batch, width] of [batch, places, width], added up in single precision."""
    if mask is None:
        return vectors.float().mean(1).to(vectors.dtype)
    padding = (mask == 0)[:, :, None]
    total = vectors.float().masked_fill(padding, 0.0).sum(1)
    return (total / (~padding).sum(1).clamp(min=1)).to(vectors.dtype)


def _as_list(given: Any, count: int) -> list[Any]:
    found = list(given) if isinstance(given, list | tuple) else [given] * count
    if len(found) != count:
        raise ValueError(f"as many images as texts, not {count} and {len(found)}")
    return found
