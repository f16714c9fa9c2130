"""What survives a crash: directories of safetensors files with a state.json, complete or absent, never half.

A directory is written beside its place under a temporary name, flushed to disk, then renamed. state.json names every
file with its SHA-256 and size, which are checked before a tensor is read. Nothing is pickled.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kaizen.errors import ConfigError, DamagedError
from kaizen.parallel import part_of

STATE = "state.json"
CHECKPOINT = re.compile(r"task-(\d+)_step-(\d+)")


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file atomically."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically: readers see the old or the new content, never a part."""
    # `kaizen eval` may write to a run that is going on: two processes never share a temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        _flush(file.fileno())
    os.replace(temporary, path)
    _flush_directory(path.parent)


def write_directory(path: Path, files: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Write a directory of NAME.safetensors files and state.json, complete or absent.

    Args:
        path: the directory; its parents are made. One that is there already is replaced.
        files: tensors of each file by name (without suffix).
        state: JSON content; "files" is added: name -> sha256 and bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    written = {}
    for name, tensors in files.items():
        file = temporary / f"{name}.safetensors"
        # safetensors refuses tensors that share memory or are not contiguous.
        save_file({key: t.detach().cpu().clone().contiguous() for key, t in tensors.items()}, file)
        # safetensors writes for the owner alone, whatever the umask says that others may read.
        file.chmod(temporary.stat().st_mode & 0o666)
        with open(file, "rb+") as handle:
            _flush(handle.fileno())
        written[file.name] = {"sha256": _sha256(file), "bytes": file.stat().st_size}
    write_json(temporary / STATE, {**state, "files": written})
    _flush_directory(temporary)
    if path.exists():
        old = path.with_name(f".{path.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    else:
        temporary.rename(path)
    _flush_directory(path.parent)


def read_state(path: Path) -> dict[str, Any]:
    """The state.json of a directory whose files are all there and unharmed.

    Raises:
        DamagedError: names the file that is missing or not what was saved.
        ConfigError: names the file that cannot be read at this moment.
    """
    file = path / STATE
    try:
        state = json.loads(file.read_text())
        files = {str(name): (info["bytes"], info["sha256"]) for name, info in state["files"].items()}
    except FileNotFoundError:
        raise DamagedError(str(file), "is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(str(file), f"is damaged ({error})") from None
    except OSError as error:
        raise ConfigError(str(file), f"cannot be read ({error.strerror})") from None
    for name, expected in files.items():
        part = path / name
        try:
            if Path(name).name != name or not part.is_file():
                raise DamagedError(str(part), "is named in state.json and missing")
            if (part.stat().st_size, _sha256(part)) != expected:
                raise DamagedError(str(part), "is damaged: its size or SHA-256 is not the one in state.json")
        except OSError as error:
            raise ConfigError(str(part), f"cannot be read ({error.strerror})") from None
    return state


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise ConfigError(str(file), f"cannot be read ({error})") from None


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], prefixes: Sequence[str], source: Path) -> None:
    """Load tensors into the parts of a module whose names start with one of the prefixes, strictly.

    Raises:
        ConfigError: a name or a shape is not the module's own.
    """
    own = {name: t for name, t in module.state_dict().items() if name.startswith(tuple(prefixes))}
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unknown:
        raise ConfigError(str(source), f"does not fit the networks: lacks {missing[:3]}, has unknown {unknown[:3]}")
    for name, tensor in tensors.items():
        if own[name].shape != tensor.shape:
            raise ConfigError(str(source), f"{name} is {list(tensor.shape)}, the network's is {list(own[name].shape)}")
        with torch.no_grad():
            own[name].copy_(part_of(tensor, own[name]))


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    """The optimizer's state as tensors named PARAMETER/KEY."""
    return {
        f"{name}/{key}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def load_optimizer(optimizer: torch.optim.Optimizer, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave."""
    parameters = dict(module.named_parameters())
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition("/")
        owner = parameters[parameter]
        # Step counters stay on the CPU, where the optimizers of torch keep them.
        value = tensor if tensor.dim() == 0 else part_of(tensor.to(owner.device, owner.dtype), owner)
        optimizer.state[owner][key] = value


def checkpoints(directory: Path) -> list[tuple[int, int, Path]]:
    """Task, step and path of every checkpoint of a directory, oldest first; those set aside are left out."""
    named = ((CHECKPOINT.fullmatch(path.name), path) for path in directory.glob("task-*"))
    return sorted((int(name[1]), int(name[2]), path) for name, path in named if name and path.is_dir())


def newest_whole(directory: Path, task: int) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a task that is whole, with its state; broken ones are set aside, by name.

    A broken checkpoint is renamed to NAME.broken and reported, never deleted; one that cannot be read is an error.
    """
    for of, _, path in reversed(checkpoints(directory)):
        if of != task:
            continue
        try:
            return path, read_state(path)
        except DamagedError as error:
            aside = next(p for i in count() if not (p := path.with_name(f"{path.name}.broken{i or ''}")).exists())
            path.rename(aside)
            print(f"{error}; the checkpoint is set aside as {aside}", flush=True)
    return None


def prune(directory: Path, keep: int, task: int) -> None:
    """Delete all but the `keep` newest checkpoints up to `task`, and those of later tasks, which are trained again."""
    found = checkpoints(directory)
    past = [path for of, _, path in found if of <= task]
    for path in past[:-keep] + [path for of, _, path in found if of > task]:
        # Renamed first, so that a kill in the middle leaves no half of a checkpoint under a checkpoint's name.
        gone = path.rename(path.with_name(f".{path.name}.gone"))
        shutil.rmtree(gone, ignore_errors=True)


def tidy(directory: Path) -> None:
    """Take away what a killed run left half written or half deleted, and put back what it was about to replace."""
    for path in directory.glob(".task-*"):
        final = path.with_name(path.name.removeprefix(".").removesuffix(".old"))
        if path.suffix == ".old" and not final.exists():
            path.rename(final)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _sha256(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _flush(descriptor: int) -> None:
    os.fsync(descriptor)


def _flush_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
