"""Sharded weights (FSDP): each process holds a part, and a block is gathered only while it runs.

A stage trains a sharded copy. The model itself stays whole in the host memory of every process, and is updated from
the copy before it is evaluated or saved: strategies, soups, checkpoints and saving know nothing of shards.

Reference: Zhao et al., "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel", VLDB 2023,
https://arxiv.org/abs/2304.11277.
"""

import copy
import os
from collections.abc import Sequence

import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.utils import DistributedType, DynamoBackend, broadcast
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from hf_transfer.errors import user_error
from hf_transfer.models.groups import Group
from hf_transfer.models.memory_format import contiguous
from hf_transfer.settings.training import TrainingSettings


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether the weights are sharded among the processes."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def start_sharding(training: TrainingSettings, accelerator: Accelerator) -> None:
    """Turn FSDP on if the launcher asks for it, on CPUs too.

    Raises:
        UserError: a setting that FSDP does not support, or DeepSpeed or Megatron.
    """
    kind = accelerator.distributed_type
    if kind == DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        # torch shards on CPUs, too; accelerate 1.15 would silently train whole models.
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        accelerator.state.distributed_type = PartialState().distributed_type = kind = DistributedType.FSDP
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise user_error(
            expected="processes that hold the whole model (MULTI_GPU, MULTI_CPU), or shard it with FSDP",
            found=f"{kind.value}, which is not supported",
            do="choose another distributed type in `accelerate config`, or leave its flag out",
        )
    if kind != DistributedType.FSDP:
        return
    if unsupported := _unsupported(training, accelerator):
        raise user_error(
            expected="with FSDP only settings that are tested to give the results of whole models",
            found=", ".join(unsupported),
            do="start from recipes/configs/accelerate/fsdp.yaml, and leave these out",
        )
    accelerator.print(f"Weights, gradients and moments are sharded among {accelerator.num_processes} processes.")


def _unsupported(training: TrainingSettings, accelerator: Accelerator) -> list[str]:
    """Settings of the run, and of accelerate, that cannot be combined with sharding."""
    plugin = accelerator.state.fsdp_plugin
    conditions = {
        f"fsdp_version: {plugin.fsdp_version}": plugin.fsdp_version != 2,
        # An evaluation would leave gathered weights in place of the parts.
        "fsdp_reshard_after_forward: false": plugin.reshard_after_forward is not True and plugin.fsdp_version == 2,
        # Each process needs the initial weights: to identify a checkpoint, and for modules that are not sharded.
        "fsdp_cpu_ram_efficient_loading: true": plugin.cpu_ram_efficient_loading,
        "fsdp_offload_params: true": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "fsdp_activation_checkpointing: true (--gradient_checkpointing is ours)": plugin.activation_checkpointing,
        "fsdp_ignored_modules": plugin.ignored_modules,
        "a parallelism_config": accelerator.parallelism_config,
        "a dynamo_backend": accelerator.state.dynamo_plugin.backend != DynamoBackend.NO,
        "--fp16 (--bf16 works)": training.fp16,
        "--auto_batch_size": training.auto_batch_size,
        "--torch_compile": training.torch_compile,
    }
    return [name for name, holds in conditions.items() if holds]


def sharded_copy(model: nn.Module, groups: Sequence[Group], accelerator: Accelerator) -> nn.Module:
    """A copy of the model for a stage, of which each process holds a part; the model itself moves to the host.

    Each block is one unit, everything else another. Parameters keep their names.

    Raises:
        UserError: the model has a parameter that cannot be divided.
    """
    if scalars := [name for name, parameter in model.named_parameters() if parameter.ndim == 0]:
        raise user_error(
            expected="with FSDP a model whose parameters can be divided",
            found=f"{scalars[0]}, a single number",
            do="train it without FSDP (recipes/configs/accelerate/multi_gpu.yaml)",
        )
    # FSDP divides the first dimension, and refuses other formats.
    part = contiguous(copy.deepcopy(model.to("cpu")))
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for group in groups:
        if group.is_block and any(True for _ in part.get_submodule(group.name).parameters()):
            fully_shard(part.get_submodule(group.name), mesh=mesh)
    # Gathered weights would not see later changes of the parts: they are freed after each forward pass.
    fully_shard(part, mesh=mesh, reshard_after_forward=True)
    return part


def gather(part: nn.Module, model: nn.Module) -> None:
    """Copy the weights of the sharded copy into the whole model; all processes call it together.

    Statistics, which each process computes from its own samples, become those of the first, as under DDP.
    """
    with torch.no_grad():
        for name, parameter in part.named_parameters():
            if parameter.requires_grad:
                model.get_parameter(name).copy_(whole(parameter))
        for name, buffer in part.named_buffers():
            model.get_buffer(name).copy_(buffer.copy_(broadcast(buffer)))


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor, on every process; a tensor that is not sharded is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_on_first(tensor: Tensor) -> Tensor:
    """The whole of a tensor in the host memory of the first process, an empty one on the others.

    All processes call it together. A tensor that is not sharded is returned as it is.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    gathered = tensor.full_tensor()
    return gathered.cpu() if tensor.device_mesh.get_rank() == 0 else gathered.new_empty(0)


def placed_like(value: Tensor, other: Tensor) -> Tensor:
    """A tensor, whole on every process, moved to the device of another, in its memory format and sharded like it."""
    if isinstance(value, DTensor) or value.shape != other.shape:
        return value.to(other.device)
    if not isinstance(other, DTensor):
        moved = value.to(other.device)
        # Fused optimizers read both in the order of the memory.
        return moved if moved.stride() == other.stride() else torch.empty_like(other).copy_(moved)
    return distribute_tensor(value.to(other.device), other.device_mesh, other.placements, src_data_rank=None)
