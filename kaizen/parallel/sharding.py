"""FSDP2: which parts of a network are sharded over the processes, and full tensors to and from their shards.

A shard is a DTensor. Each block of the encoder is an FSDP unit, in the launch's precision; each head with BatchNorm is
a float32 unit, as its statistics need it; all the rest belongs to the root, in float32.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from kaizen.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

# torch.distributed.fsdp and .tensor take most of a second to load, so only launches that shard import them.


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether the launch shards parameters over the processes.

    Raises:
        ConfigError: with settings that are not supported.
    """
    if accelerator.distributed_type != DistributedType.FSDP:
        return False
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2:
        raise ConfigError("fsdp_version", f"is {plugin.fsdp_version}; allowed: 2 (accelerate_configs/fsdp2.yaml)")
    for key in ("cpu_ram_efficient_loading", "activation_checkpointing", "cpu_offload"):
        value = getattr(plugin, key)
        if value is True or isinstance(value, CPUOffloadPolicy):
            raise ConfigError(f"fsdp_{key.replace('cpu_offload', 'offload_params')}", "is true; allowed: false")
    if accelerator.mixed_precision == "fp16":
        raise ConfigError("mixed_precision", "is fp16; allowed with FSDP: no, bf16")
    # Accelerate shards only the root. Its policy would convert that to half precision, including the prototypes.
    plugin.auto_wrap_policy, plugin.mixed_precision_policy = None, MixedPrecisionPolicy()
    return True


def check_encoder(encoder: nn.Module, name: str) -> None:
    """Raise a ConfigError if FSDP cannot shard the encoder of that name."""
    if any(isinstance(module, _BatchNorm) for module in encoder.modules()):
        broken = "whose statistics FSDP's half precision breaks"
        if ":" in name:
            problem = f"is {name}, which has BatchNorm, {broken}"
            raise ConfigError("encoder.name", f"{problem}; allowed with FSDP: encoders without (or DDP with any)")
        raise ConfigError("encoder.norm", f"is 'batch', {broken}; allowed with FSDP: group, a ViT (or DDP with any)")


def shard_units(module: nn.Module, accelerator: Accelerator, block_names: Sequence[str], reshard: bool = False) -> None:
    """Shard the blocks and the heads with BatchNorm inside a module, but not its root.

    Args:
        reshard: free the full weights after each forward pass, even if the launch does not.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    settings: dict[str, Any] = {"reshard_after_forward": reshard or accelerator.state.fsdp_plugin.reshard_after_forward}
    half = torch.bfloat16 if accelerator.mixed_precision == "bf16" else None
    policy = MixedPrecisionPolicy(param_dtype=half, reduce_dtype=torch.float32, output_dtype=torch.float32)
    for part in list(module.modules()):
        if type(part).__name__ in block_names:
            fully_shard(part, mp_policy=policy if half else MixedPrecisionPolicy(), **settings)
        elif isinstance(part, nn.Sequential) and any(isinstance(child, _BatchNorm) for child in part):
            fully_shard(part, **settings)


def shard_follower(module: nn.Module, accelerator: Accelerator, block_names: Sequence[str]) -> None:
    """Shard a network without an optimizer in the same way as the student; its children are called one by one."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    # Without a backward pass, only resharding frees the full weights and makes the next forward pass read new ones.
    shard_units(module, accelerator, block_names, reshard=True)
    for child in module.children():
        if not isinstance(child, FSDPModule) and any(True for _ in child.parameters()):
            fully_shard(child, reshard_after_forward=True)


def _is_shard(tensor: Tensor) -> "TypeGuard[DTensor]":
    return hasattr(tensor, "device_mesh")


def full_tensors(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """The full tensors, gathered from shards to the CPU one at a time; all processes call this, also without `keep`."""
    found = {}
    for name, tensor in tensors.items():
        full = tensor.full_tensor() if _is_shard(tensor) else tensor
        if keep:
            # The device of a shard may not have enough memory for the full network.
            found[name] = full.cpu() if _is_shard(tensor) else full
    return found


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """The local shard of a full tensor that every process has, placed as `like`; all processes call this."""
    if not _is_shard(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(like.device, like.dtype), like.device_mesh, like.placements)


def local(tensor: Tensor) -> Tensor:
    """This process' part of a tensor, sharing its memory."""
    return tensor.to_local() if _is_shard(tensor) else tensor


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norms (count,) of full tensors, from the shards of all processes, with one message."""
    found = torch.stack(torch._foreach_norm([local(tensor) for tensor in tensors]))
    if not _is_shard(tensors[0]):
        return found
    squares = found.square()
    dist.all_reduce(squares, group=tensors[0].device_mesh.get_group())
    return squares.sqrt()


def check_alike(one: Sequence[Tensor], other: Sequence[Tensor]) -> None:
    """Raise a RuntimeError if two lists of parameters are not sharded in the same way."""
    for a, b in zip(one, other, strict=True):
        places = [(t.placements, t.device_mesh) if _is_shard(t) else None for t in (a, b)]
        if places[0] != places[1] or local(a).shape != local(b).shape:
            raise RuntimeError(f"parameters {tuple(a.shape)} and {tuple(b.shape)} are not sharded alike: {places}")
