"""Writes a folder that contains a model and all that is needed to use it elsewhere; complete or absent."""

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from kaizen.errors import ConfigError
from kaizen.run.checkpoint import write_json, write_text, writing
from kaizen.run.durable import flush_directory, if_able
from kaizen.takeaway.card import card
from kaizen.takeaway.description import CONFIG, TENSORS, Held
from kaizen.takeaway.graph import write_graph
from kaizen.takeaway.load import build

ENCODER, GRAPH = "encoder.safetensors", "model.onnx"


def check_free(folder: Path) -> None:
    """Refuse a place that is taken; an empty directory is free.

    Raises:
        ConfigError: something is there, or it cannot be looked at.
    """
    if folder.absolute() == Path.cwd():  # a rename would take it away from under the user
        raise ConfigError("--out", f"is '{folder}', the current directory; allowed: another, new or empty one")
    try:
        if os.path.lexists(folder) and not (folder.is_dir() and not any(folder.iterdir())):
            raise ConfigError("--out", f"is '{folder}', which exists; allowed: a new or an empty directory")
    except OSError as error:
        raise ConfigError("--out", f"{folder} cannot be read ({error.strerror})") from None


def export(held: Held, folder: Path, *, onnx: bool, licence: str = "unknown") -> None:
    """Write model.safetensors, encoder.safetensors, config.json, the card README.md and, with `onnx`, model.onnx.

    Args:
        held: what `read_run` found.
        folder: a new or an empty directory; its parents are created.
        onnx: whether to write model.onnx, which needs kaizen.takeaway.graph.PACKAGES.
        licence: identifier for the head of the card.

    Raises:
        ConfigError: the tensors do not fit each other, or the folder cannot be written.
    """
    check_free(folder)
    about = held.description
    models = {reader: build(held, reader) for reader in about.taught}
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        encoder = {name: t for name, t in held.tensors.items() if name.startswith("encoder.")}
        _save(held.tensors, temporary / TENSORS)
        _save({name.removeprefix("encoder."): t for name, t in encoder.items()}, temporary / ENCODER)
        if onnx:
            with writing(temporary / GRAPH):
                write_graph(models, temporary / GRAPH)
        write_json(temporary / CONFIG, about.model_dump(mode="json"))
        write_text(temporary / "README.md", card(about, licence, onnx=onnx))
        flush_directory(temporary)
        temporary.rename(folder)
        flush_directory(folder.parent)
    except OSError as error:
        raise ConfigError("--out", f"{folder} cannot be written ({error.strerror})") from None
    finally:
        with suppress(OSError):
            shutil.rmtree(temporary, ignore_errors=True)


def _save(tensors: Mapping[str, Tensor], file: Path) -> None:
    with writing(file):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
        with if_able():  # safetensors lets only the owner read its files, whatever the umask
            file.chmod(file.parent.stat().st_mode & 0o666)
        with open(file, "rb+") as handle:
            os.fsync(handle.fileno())
