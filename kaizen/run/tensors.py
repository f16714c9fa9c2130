"""Saved tensors, and loading them into networks and optimizers, strictly."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kaizen.errors import ConfigError
from kaizen.parallel import shard_like


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ConfigError(str(file), f"cannot be read ({error})") from None


def cpu_copies(files: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Copies on the CPU, which later changes of the tensors do not affect."""
    return {file: {n: t.detach().to("cpu", copy=True) for n, t in held.items()} for file, held in files.items()}


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], prefixes: Sequence[str], source: Path) -> None:
    """Load tensors into the parts of a module whose names start with one of the prefixes, strictly.

    Raises:
        ConfigError: a name or a shape does not match the module's.
    """
    own = {name: t for name, t in module.state_dict().items() if name.startswith(tuple(prefixes))}
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unknown:
        raise ConfigError(str(source), f"does not fit the networks: lacks {missing[:3]}, has unknown {unknown[:3]}")
    for name, tensor in tensors.items():
        if own[name].shape != tensor.shape:
            raise ConfigError(str(source), f"{name} is {list(tensor.shape)}, the network's is {list(own[name].shape)}")
        with torch.no_grad():
            own[name].copy_(shard_like(tensor, own[name]))


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as tensors named PARAMETER/KEY."""
    return {
        f"{name}/{key}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer(
    optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor], source: Path
) -> None:
    """Load the tensors that `optimizer_tensors` returned.

    Raises:
        ConfigError: a tensor of `source` belongs to no parameter, or has a different shape.
    """
    parameters = dict(module.named_parameters())
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition("/")
        owner = parameters.get(parameter)
        if owner is None or (tensor.dim() and tensor.shape != owner.shape):
            wanted = "the networks have no such parameter" if owner is None else f"the parameter is {list(owner.shape)}"
            raise ConfigError(str(source), f"contains {name!r} {list(tensor.shape)}; {wanted}")
        # Step counters stay on the CPU, where torch's optimizers keep them unless they are fused.
        value = tensor.to(owner.device) if fused else tensor
        if tensor.dim():
            # In the parameter's memory layout, as the optimizer would have created it.
            value = torch.empty_like(owner, requires_grad=False)
            value.copy_(shard_like(tensor.to(owner.device, owner.dtype), owner))
        optimizer.state[owner][key] = value
