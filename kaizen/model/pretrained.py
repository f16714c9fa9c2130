"""The pretrained weights that a run starts from: read once, checked, and kept in its directory.

From then on the run needs neither the file nor the hub: task 0 and the row of the untrained network read the copy.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from kaizen.config.schema import Config
from kaizen.errors import ConfigError
from kaizen.model.networks.encoders import build_encoder
from kaizen.model.networks.weights import HUB_FILE, KEY, fitted
from kaizen.parallel import Parallel
from kaizen.run.checkpoint import writing
from kaizen.run.durable import flush_directory, if_able
from kaizen.run.places import task_directory, user_path
from kaizen.run.tensors import read_tensors

FILE = "pretrained.safetensors"


def keep_pretrained(config: Config, run: Path, parallel: Parallel) -> list[str]:
    """Copy the weights that the configuration names into the run directory, unless they are there; lines for the user.

    All processes call this before the run begins.

    Raises:
        ConfigError: they cannot be read or do not fit the encoder, or the directory cannot be written.
    """
    if config.encoder.weights is None:
        return []
    if lines := parallel.on_main(lambda: _kept(config, config.encoder.weights or "", run)):
        parallel.await_file(run / FILE)
    return lines


def _kept(config: Config, source: str, run: Path) -> list[str]:
    if held := recorded(run):
        return [f"{'weights':19} {_named(held)}", *_changed(source, held)]
    if task_directory(run, 0).exists():
        return []
    file = _located(source)
    origin = {"source": source, "sha256": _sha256(file), **_revision(file, source)}
    with torch.random.fork_rng(devices=[]):
        encoder = build_encoder(config.encoder, config.data.image_size)
    tensors, notes = fitted(read_tensors(file), encoder, source)
    temporary = run / f".{FILE}.tmp"
    try:
        with writing(run / FILE):
            save_file({name: t.contiguous() for name, t in tensors.items()}, temporary, metadata=origin)
            with if_able():
                temporary.chmod(run.stat().st_mode & 0o666)
            with open(temporary, "rb+") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, run / FILE)
            flush_directory(run)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError("run.dir", f"{run} cannot be written ({error.strerror})") from None
    return [f"{'weights':19} {_named(origin)}", *(f"{'weights':19} {note}" for note in notes)]


def load_pretrained(encoder: nn.Module, config: Config, run: Path) -> None:
    """Give a fresh encoder the weights that the run started from, if it started from any.

    Raises:
        ConfigError: the run's copy is missing, damaged, or of another encoder.
    """
    if config.encoder.weights is None:
        return
    own = encoder.state_dict()
    for name, tensor in read_tensors(run / FILE).items():
        if name not in own or own[name].shape != tensor.shape:
            raise ConfigError(str(run / FILE), f"does not fit the encoder: {name} is {list(tensor.shape)}")
        with torch.no_grad():
            own[name].copy_(tensor)


def recorded(run: Path) -> dict[str, str] | None:
    """Origin of a run's copy of pretrained weights: source, sha256 and, from the hub, revision; None without a copy."""
    if not (run / FILE).exists():
        return None
    try:
        with safe_open(run / FILE, "pt") as held:
            return dict(held.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ConfigError(str(run / FILE), f"cannot be read ({error})") from None


def _located(source: str) -> Path:
    """The file of a source, downloaded if it is on the hub."""
    if not source.startswith("hub:"):
        file = user_path(KEY, source)
        if not file.is_file():
            raise ConfigError(KEY, f"is {source!r}, but there is no such file; allowed: a file of safetensors")
        return file
    import huggingface_hub

    repository, _, name = source.removeprefix("hub:").partition(":")
    try:
        return Path(huggingface_hub.hf_hub_download(repository, name or HUB_FILE))
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        problem = f"is {source}, but {name or HUB_FILE} of {repository} cannot be had from the hub ({said})"
        allowed = "a repository with that file, or with HF_HUB_OFFLINE=1 one that was downloaded before"
        raise ConfigError(KEY, f"{problem}; allowed: {allowed}") from None


def _revision(file: Path, source: str) -> dict[str, str]:
    """The commit of a file in the hub's cache, which has it as the name of a folder."""
    folders = file.parts
    if not source.startswith("hub:") or "snapshots" not in folders[:-1]:
        return {}
    return {"revision": folders[folders.index("snapshots") + 1]}


def _named(origin: dict[str, Any]) -> str:
    revision = f", revision {origin['revision'][:12]}" if "revision" in origin else ""
    return f"{origin.get('source')}{revision}, sha256 {origin.get('sha256', '')[:12]}"


def _changed(source: str, held: dict[str, str]) -> list[str]:
    """A line where the file is no longer what the run started from."""
    if source.startswith("hub:"):
        return []
    file = user_path(KEY, source)
    if not file.is_file() or _sha256(file) == held.get("sha256"):
        return []
    return [f"note: {source} has changed since the run began; the run goes on with what it began with"]


def _sha256(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
