"""A classifier of images with texts whose one linear layer reads two frozen towers at several depths.

This file is saved with the weights, beside those that it imports, and needs only torch and transformers. An image or a
text may be missing:

    model = AutoModel.from_pretrained("path/to/this/folder", trust_remote_code=True)
    model.predict(image="cup.jpg", text="blue, holds 300 ml")
    model.predict(text="blue, holds 300 ml")

What is read of each tower are taps, as in `modeling_deep_probe.py`. Those of a missing image or text are zeros, and two
more features say which of both are present.

Reference: Evci, Dumoulin, Larochelle and Mozer, "Head2Toe: Utilizing Intermediate Representations for Better Transfer
Learning", ICML 2022, https://arxiv.org/abs/2201.03529.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput  # type: ignore[attr-defined]

from .modeling_deep_probe import FIRST, HEAD, MEAN, joined, tap_vectors
from .modeling_pair import INPUTS, PairConfig, PairModel, as_sequence, pooled, present_of

PRESENT = "present"


class PairProbeConfig(PairConfig):
    """The configurations of both towers, and where they are read.

    Attributes:
        taps: what the linear layer reads, in this order: `["image", "mean", number of the hidden state]`, or `"text"`;
            instead of `"mean"` also `"first"`; with the number 0 `"head"`, the tower's pooled vector, or `"present"`,
            one number that is 1 or, where the image or text is missing, 0.
        widths: how many features each tap has.
        head_bias: whether the linear layer has a bias.
    """

    model_type = "pair_probe"

    # Written out instead of a dataclass, so that other versions of transformers accept it, too.
    def __init__(
        self,
        image_config: PretrainedConfig | dict[str, Any] | None = None,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        *,
        taps: Sequence[Sequence[Any]] = (("image", HEAD, 0), ("text", HEAD, 0)),
        widths: Sequence[int] = (768, 768),
        head_bias: bool = True,
        **kwargs: Any,
    ) -> None:
        kinds = (HEAD, MEAN, FIRST, PRESENT)
        if len(taps) != len(widths) or any(tower not in INPUTS or kind not in kinds for tower, kind, _ in taps):
            raise ValueError(f"taps are a tower, one of {kinds} and a number, each with a width, not {taps!r}")
        self.taps = [[tower, kind, int(number)] for tower, kind, number in taps]
        self.widths, self.head_bias = list(widths), head_bias
        super().__init__(image_config, text_config, **kwargs)


@dataclass
class PairProbeOutput(ModelOutput):
    """Outputs of the model.

    Attributes:
        loss: of `logits`, if labels were given.
        logits: [batch, labels].
    """

    loss: Tensor | None = None
    logits: Tensor | None = None


class PairProbeModel(PairModel):
    """Two frozen towers, and a linear layer on their taps; see `PairModel`."""

    config_class = PairProbeConfig

    def __init__(
        self,
        config: PairProbeConfig,
        image_tower: PreTrainedModel | None = None,
        text_tower: PreTrainedModel | None = None,
    ) -> None:
        super().__init__(config, image_tower, text_tower)
        self.classifier = nn.Linear(sum(config.widths), config.num_labels or 0, bias=config.head_bias)
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
    ) -> PairProbeOutput | tuple[Tensor, ...]:
        """Logits, and the loss if there are labels.

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
        inputs = {
            "pixel_values": pixel_values,
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "image_present": image_present,
            "text_present": text_present,
        }
        given = {name: value for name, value in inputs.items() if value is not None}
        features = joined(pair_vectors(self, self.config.taps, given, self.config.widths))
        logits = self.classifier(features.to(self.classifier.weight.dtype))
        loss = None if labels is None else self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        output = PairProbeOutput(loss, logits)
        as_output = self.config.return_dict if return_dict is None else return_dict
        return output if as_output else output.to_tuple()


def pair_vectors(
    model: Any, taps: Sequence[Sequence[Any]], inputs: Mapping[str, Tensor], widths: Sequence[int] = ()
) -> list[Tensor]:
    """The vectors of some taps, by one pass through each tower [batch, width]; zeros where a part is missing.

    Args:
        model: has `image_tower`, `text_tower`, and the pooling of both in its `config`.
        taps: see `PairProbeConfig`.
        inputs: see `PairProbeModel.forward`; of a part that all samples lack, there need not be any.
        widths: of the taps, needed if all samples lack a part.
    """
    given = inputs.get("pixel_values", inputs.get("input_ids"))
    if given is None:
        raise ValueError("pixel_values or input_ids must be given, or both")
    vectors: dict[int, Tensor] = {}
    for tower, (main, *_) in INPUTS.items():
        present = present_of(inputs.get(f"{tower}_present"), inputs.get(main), given)[:, None]
        of_tower = {place: (kind, number) for place, (one, kind, number) in enumerate(taps) if one == tower}
        read = {place: tap for place, tap in of_tower.items() if tap[0] != PRESENT}
        vectors |= {place: present.float() for place in of_tower.keys() - read.keys()}
        if main not in inputs:
            vectors |= {place: torch.zeros(len(given), widths[place], device=given.device) for place in read}
        elif read:
            backbone = partial(
                pooled_tower, model.get_submodule(f"{tower}_tower"), getattr(model.config, f"{tower}_pooling")
            )
            of_inputs = {name: inputs[name] for name in INPUTS[tower] if name in inputs}
            of_taps = tap_vectors(backbone, list(read.values()), of_inputs)
            vectors |= {place: torch.where(present, one, 0.0) for place, one in zip(read, of_taps, strict=True)}
    return [vectors[place] for place in range(len(taps))]


def pooled_tower(tower: nn.Module, pooling: str, **inputs: Any) -> Any:
    """The outputs of a tower; `logits` are its pooled vector [batch, width], since no head follows.

    Args:
        tower: a backbone.
        pooling: see `PairConfig`.
        **inputs: of the tower.
    """
    output = tower(**inputs)
    hidden = as_sequence(output.last_hidden_state)
    output["logits"] = pooled(pooling, output, hidden, inputs.get("attention_mask"))
    return output
