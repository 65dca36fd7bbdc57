"""Weights shared out among the processes (FSDP): each holds a part, and a block is whole only while it runs.

A stage learns with a sharded copy. The model itself stays whole in the host's memory of every process, and takes over
what the copy has learned whenever somebody looks at it: strategies, soups, checkpoints and saving know of no shards.

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
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from hf_transfer.config import RunConfig, mistake
from hf_transfer.models.groups import Group


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether the processes share the weights out among them."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def start_sharding(config: RunConfig, accelerator: Accelerator) -> None:
    """Let FSDP be what was asked for, on CPUs too, or refuse what would come out otherwise than asked for.

    Raises:
        UserError: a setting that does not go with FSDP, or another way to share the weights out.
    """
    kind = accelerator.distributed_type
    if kind == DistributedType.MULTI_CPU and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        # torch shards on CPUs, too; accelerate 1.15 would go on with whole models, and say nothing.
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
        accelerator.state.distributed_type = PartialState().distributed_type = kind = DistributedType.FSDP
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise mistake(
            expected="processes that hold the whole model (MULTI_GPU, MULTI_CPU), or share it out by FSDP",
            found=f"{kind.value}, which is not supported",
            do="choose another distributed type in `accelerate config`, or leave the flag for it out",
        )
    if kind != DistributedType.FSDP:
        return
    if found := _unsupported(config, accelerator):
        raise mistake(
            expected="with FSDP what has been shown to give the results of whole models",
            found=", ".join(found),
            do="begin with recipes/configs/accelerate/fsdp.yaml, and leave these out",
        )
    accelerator.print(f"Weights, gradients and moments are shared out among {accelerator.num_processes} processes.")


def _unsupported(config: RunConfig, accelerator: Accelerator) -> list[str]:
    """Settings of the run, and of accelerate, that are not to be combined with shards."""
    plugin = accelerator.state.fsdp_plugin
    given = {
        f"fsdp_version: {plugin.fsdp_version}": plugin.fsdp_version != 2,
        # An evaluation would leave gathered weights in the place of the parts.
        "fsdp_reshard_after_forward: false": plugin.reshard_after_forward is not True and plugin.fsdp_version == 2,
        # Each process needs the weights that it begins with: to know a checkpoint, and for what is not sharded.
        "fsdp_cpu_ram_efficient_loading: true": plugin.cpu_ram_efficient_loading,
        "fsdp_offload_params: true": isinstance(plugin.cpu_offload, CPUOffloadPolicy),
        "fsdp_activation_checkpointing: true (--gradient_checkpointing is ours)": plugin.activation_checkpointing,
        "fsdp_ignored_modules": plugin.ignored_modules,
        "a parallelism_config": accelerator.parallelism_config,
        "a dynamo_backend": accelerator.state.dynamo_plugin.backend != DynamoBackend.NO,
        "--fp16 (--bf16 works)": config.fp16,
        "--auto_batch_size": config.auto_batch_size,
    }
    return [name for name, is_so in given.items() if is_so]


def sharded_copy(model: nn.Module, groups: Sequence[Group], accelerator: Accelerator) -> nn.Module:
    """A copy of the model for a stage, of which each process holds a part; the model itself moves to the host.

    Each block is gathered by itself, everything else as one. Parameters keep their names.

    Raises:
        UserError: the model has a parameter that cannot be divided.
    """
    if single := [name for name, parameter in model.named_parameters() if parameter.ndim == 0]:
        raise mistake(
            expected="with FSDP a model whose parameters can be divided",
            found=f"{single[0]}, a single number",
            do="train it without FSDP (recipes/configs/accelerate/multi_gpu.yaml)",
        )
    part = copy.deepcopy(model.to("cpu"))
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for group in groups:
        block = part.get_submodule(group.name) if group.is_block else None
        if block is not None and any(True for _ in block.parameters()):
            fully_shard(block, mesh=mesh)
    # What is gathered takes the place of the parts, and outlives a change of them: it is given up after each forward.
    fully_shard(part, mesh=mesh, reshard_after_forward=True)
    return part


def gather(part: nn.Module, model: nn.Module) -> None:
    """Give the whole model what its sharded copy has learned; all processes call it together.

    Statistics, which each process takes of its own samples, become those of the first, as under DDP.
    """
    with torch.no_grad():
        for name, parameter in part.named_parameters():
            if parameter.requires_grad:
                model.get_parameter(name).copy_(whole(parameter))
        for name, buffer in part.named_buffers():
            model.get_buffer(name).copy_(buffer.copy_(broadcast(buffer)))


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every process; one that is not shared out as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_on_first(tensor: Tensor) -> Tensor:
    """All of a tensor in the host's memory of the first process, and nothing on the others; all call it together.

    One that is not shared out is left as it is.
    """
    if not isinstance(tensor, DTensor):
        return tensor
    gathered = tensor.full_tensor()
    return gathered.cpu() if tensor.device_mesh.get_rank() == 0 else gathered.new_empty(0)


def placed_like(value: Tensor, other: Tensor) -> Tensor:
    """A tensor on the device of another, and in parts like it; every process has the whole."""
    if isinstance(value, DTensor) or not isinstance(other, DTensor) or value.shape != other.shape:
        return value.to(other.device)
    return distribute_tensor(value.to(other.device), other.device_mesh, other.placements, src_data_rank=None)


def to_device(model: nn.Module, device: torch.device) -> None:
    """Move a model to where it runs; a sharded one is there, and must not be moved."""
    if not isinstance(model, FSDPModule):
        model.to(device)
