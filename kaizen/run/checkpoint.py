"""Crash-safe storage: directories of safetensors files with a state.json, complete or absent, never half written.

A directory is written under a temporary name, flushed to disk, then renamed. state.json lists every file with its
SHA-256 and size, and contains the SHA-256 of its own content; all are checked before a tensor is read.
Nothing is pickled.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from kaizen.errors import ConfigError, DamagedError
from kaizen.run.durable import flush_directory, if_able

STATE = "state.json"
CHECKPOINT = re.compile(r"task-(\d+)_step-(\d+)")


def write_json(path: Path, content: Any) -> None:
    """Replace a JSON file atomically."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically, as `write_bytes` does."""
    # Text from a command line may contain bytes that are not UTF-8.
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file atomically: readers see the old or the new content, never a part."""
    # `kaizen eval` may write while the run trains: two writers never share a temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.tmp")
    with writing(path):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        flush_directory(path.parent)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Add the name of this file to every OSError raised inside: those of a write or a flush name none.

    Raises:
        OSError: the file system refused to write, as when it is full.
    """
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        reason = (int(number[1]), os.strerror(int(number[1]))) if number else (errno.EIO, str(error))
        raise OSError(*reason, str(path)) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def write_directory(path: Path, files: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Write a directory of NAME.safetensors files and state.json, complete or absent.

    Args:
        path: the directory; its parents are created, and an existing directory is replaced.
        files: tensors of each file by name (without suffix).
        state: JSON content; "files" is added: name -> sha256 and bytes.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with writing(path):
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True)
            flush_directory(path.parent.parent)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            _fill(temporary, files, state)
        except (OSError, SafetensorError):
            # On a full disk the status file and a second try need its space.
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        if path.exists():
            old = path.with_name(f".{path.name}.old")
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.rename(path)
        flush_directory(path.parent)


def _fill(folder: Path, files: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    folder.mkdir()
    written = {}
    for name, tensors in files.items():
        file = folder / f"{name}.safetensors"
        # safetensors refuses tensors that share memory or are not contiguous.
        flat = torch.contiguous_format
        save_file({key: t.detach().to("cpu", copy=True, memory_format=flat) for key, t in tensors.items()}, file)
        # safetensors lets only the owner read its files, whatever the umask.
        with if_able():
            file.chmod(folder.stat().st_mode & 0o666)
        with open(file, "rb+") as handle:
            os.fsync(handle.fileno())
        written[file.name] = {"sha256": _sha256(file), "bytes": file.stat().st_size}
    content = {**state, "files": written}
    write_json(folder / STATE, {**content, "sha256": seal(content)})
    flush_directory(folder)


def seal(content: Mapping[str, Any]) -> str:
    """SHA-256 of the content of a state.json, which is stored in the same file."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_state(path: Path, needs: Collection[str] = ()) -> dict[str, Any]:
    """The content of state.json, after a check that all files of the directory are complete and undamaged.

    Args:
        needs: names (without suffix) of the files that the directory must contain.

    Raises:
        DamagedError: a file is missing or differs from what was saved.
        ConfigError: a file cannot be read at this moment.
    """
    file = path / STATE
    try:
        state = dict(json.loads(file.read_text(encoding="utf-8")))
        if state.pop("sha256", None) != seal(state):
            raise ValueError("its SHA-256 does not match its content")
        files = {str(name): (info["bytes"], info["sha256"]) for name, info in state["files"].items()}
        if lacking := sorted({f"{name}.safetensors" for name in needs} - files.keys()):
            raise ValueError(f"it does not list {', '.join(lacking)}")
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
                raise DamagedError(str(part), "is listed in state.json but missing")
            if (part.stat().st_size, _sha256(part)) != expected:
                raise DamagedError(str(part), "is damaged: its size or SHA-256 differs from the one in state.json")
        except OSError as error:
            raise ConfigError(str(part), f"cannot be read ({error.strerror})") from None
    return state


def checkpoints(directory: Path) -> list[tuple[int, int, Path]]:
    """Task, step and path of every checkpoint of a directory, oldest first; those set aside are left out."""
    named = ((CHECKPOINT.fullmatch(path.name), path) for path in directory.glob("task-*"))
    return sorted((int(name[1]), int(name[2]), path) for name, path in named if name and path.is_dir())


def newest_intact(
    directory: Path, task: int, read: Callable[[Path], dict[str, Any]] = read_state
) -> tuple[Path, dict[str, Any]] | None:
    """The newest intact checkpoint of a task, with its state as `read` returns it; damaged ones are set aside.

    A damaged checkpoint is renamed to NAME.broken and reported, never deleted; one that cannot be read is an error.
    """
    for path in [path for of, _, path in reversed(checkpoints(directory)) if of == task]:
        try:
            return path, read(path)
        except DamagedError as error:
            aside = next(p for i in count() if not (p := path.with_name(f"{path.name}.broken{i or ''}")).exists())
            path.rename(aside)
            flush_directory(directory)
            print(f"{error}; the checkpoint is set aside as {aside}", flush=True)
    return None


def prune(directory: Path, keep: int, task: int) -> None:
    """Delete all but the `keep` newest checkpoints up to `task`, and those of later tasks, which are trained again."""
    found = checkpoints(directory)
    past = [path for of, _, path in found if of <= task]
    for path in past[:-keep] + [path for of, _, path in found if of > task]:
        # Renamed first, so that a kill in the middle leaves no half of a checkpoint under a checkpoint's name.
        renamed = path.rename(path.with_name(f".{path.name}.gone"))
        shutil.rmtree(renamed, ignore_errors=True)


def tidy(directory: Path) -> None:
    """Remove what a killed run left half written or half deleted, and restore what it was about to replace."""
    for path in directory.glob(".task-*"):
        final = path.with_name(path.name.removeprefix(".").removesuffix(".old"))
        if path.suffix == ".old" and not final.exists():
            path.rename(final)
            flush_directory(directory)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _sha256(file: Path) -> str:
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
