"""How good the features of earlier layers are: reported only, since the model's own head sees the last ones alone."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from hf_transfer.config import RunConfig
from hf_transfer.data.inputs import Batch, Loaders
from hf_transfer.models.groups import Group, evaluating
from hf_transfer.training.features import best_solution, features_of
from hf_transfer.training.linear_classifier import LinearProblem
from hf_transfer.training.recording import identity


def probe_layers(
    model: nn.Module, groups: Sequence[Group], loaders: Loaders, accelerator: Accelerator, config: RunConfig,
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Solve a probe on each of `config.feature_layers`, and one on all of them together; say how good they are.

    A layer's features are the mean of what it gives over all tokens or all places. The model is left as it was, and
    every process has to call this.

    Reference: Alain and Bengio, "Understanding intermediate layers using linear classifier probes", ICLR workshop
    2017, https://arxiv.org/abs/1610.01644.

    Args:
        model: classifier, not wrapped.
        groups: its groups in depth order.
        loaders: batches of training and validation.
        accelerator: the processes that share the forward passes.
        config: the layers, counted from 1 at the input, and where features are kept.
        say: is given the sentences.
    """
    if not config.feature_layers:
        return
    blocks = [group for group in groups if group.is_block]
    chosen = [blocks[number - 1] for number in config.feature_layers]
    head = model.get_submodule(groups[-1].modules[0])
    assert isinstance(head, nn.Linear)
    classes = head.out_features
    with evaluating(model), torch.no_grad():
        model.to(accelerator.device)
        pooled = _Pooled(model, [group.modules[0] for group in chosen])
        widths = [tensor.shape[1] for tensor in pooled(_example(loaders, accelerator))]
        material = {"means of": [group.name for group in chosen], **identity(model, groups[-1].modules, accelerator)}
        with features_of(pooled, widths, 0, material, loaders, accelerator, config) as features:
            if not accelerator.is_main_process:
                return
            combinations: list[tuple[int, ...]] = [(place,) for place in range(len(chosen))]
            if len(chosen) > 1:
                combinations.append(tuple(range(len(chosen))))
            for places in combinations:
                own = replace(features, columns=places)
                balanced = config.class_weights == "balanced"
                problem = LinearProblem(own.blocks, classes, intercept=True, balanced=balanced)
                _, row = best_solution(problem, own, config.metric_for_best_model)
                names = " + ".join(str(config.feature_layers[place]) for place in places)
                say(
                    f"Probe of layer {names} of {len(blocks)}: validation accuracy {row['accuracy']:.4f}, "
                    f"loss {row['loss']:.4f}."
                )


class _Pooled:
    """What some modules give for a batch, each averaged over its tokens or places [samples, features]."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.model, self.names = model, names

    def __call__(self, inputs: Batch) -> list[Tensor]:
        found: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for name in self.names:

                def keep(_module: nn.Module, _args: object, output: object, name: str = name) -> None:
                    found[name] = _mean(output, inputs.get("attention_mask"))

                stack.callback(self.model.get_submodule(name).register_forward_hook(keep).remove)
            self.model(**inputs)
        return [found[name] for name in self.names]


def _mean(output: object, mask: Tensor | None) -> Tensor:
    tensor = output[0] if isinstance(output, tuple | list) else output
    assert isinstance(tensor, Tensor)
    if tensor.ndim == 3 and mask is not None:
        weights = mask.to(tensor)[:, :, None]
        return (tensor * weights).sum(1) / weights.sum(1).clamp_min(1)
    # Tokens lie in the middle [samples, tokens, features], places at the end [samples, channels, height, width].
    return tensor.mean(1) if tensor.ndim == 3 else tensor.flatten(2).mean(2) if tensor.ndim > 2 else tensor


def _example(loaders: Loaders, accelerator: Accelerator) -> Batch:
    source = loaders.validation
    return loaders.to_inputs(source.collate_fn([source.dataset[0]]), accelerator.device, "validation", None)[0]
