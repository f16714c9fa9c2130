"""If a process ends after any single file operation of checkpoint.py, the next start can resume from what is left."""

import builtins
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import kaizen.run.checkpoint
from kaizen.run.checkpoint import newest_intact, prune, read_state, tidy, write_directory, write_json
from kaizen.run.tensors import read_tensors

OPERATIONS = ("replace", "rename", "mkdir", "fsync", "unlink", "rmdir", "chmod", "open")
ENDED = 77


def save(path: Path, value: float) -> None:
    tensors = {"student": {"a": torch.full((4,), value)}, "method": {"b": torch.full((2, 3), value)}}
    write_directory(path, tensors, {"value": value})


def held(path: Path) -> float:
    """The value in a directory, which must be intact."""
    value = read_state(path)["value"]
    assert torch.equal(read_tensors(path / "student.safetensors")["a"], torch.full((4,), value))
    assert torch.equal(read_tensors(path / "method.safetensors")["b"], torch.full((2, 3), value))
    return float(value)


def ended_after(number: int, work: Callable[[], Any]) -> bool:
    """Do the work in a child that ends after so many file operations; False if the work was done before."""
    child = os.fork()
    if child == 0:
        done = 0

        def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                nonlocal done
                result = operation(*args, **kwargs)
                done += 1
                if done == number:
                    os._exit(ENDED)
                return result

            return run

        for name in OPERATIONS:
            setattr(os, name, counted(getattr(os, name)))
        builtins.open = counted(builtins.open)  # type: ignore[assignment]
        kaizen.run.checkpoint.save_file = counted(kaizen.run.checkpoint.save_file)
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == ENDED


def interrupted(folder: Path, work: Callable[[Path], Any]) -> Iterator[Path]:
    """Directories in which the work ended after its first file operation, after its second, and so on."""
    for number in range(1, 500):
        path = folder / str(number)
        path.mkdir()
        save(path / "task-00_step-00000002", 2.0)
        save(path / "task-00_step-00000004", 4.0)
        went = ended_after(number, lambda: work(path))  # noqa: B023
        yield path
        if not went:
            assert number > 10, "the work has more operations"
            return
    pytest.fail("the work never ended by itself")


def test_while_a_checkpoint_is_written_and_older_ones_are_deleted(tmp_path: Path) -> None:
    def work(path: Path) -> None:
        save(path / "task-00_step-00000006", 6.0)
        prune(path, 1, 0)

    for path in interrupted(tmp_path, work):
        tidy(path)
        found = newest_intact(path, 0)
        assert found
        new = path / "task-00_step-00000006"
        assert held(found[0]) == (6.0 if new.exists() else 4.0)
        assert not list(path.glob("*.broken*")), "a directory with a checkpoint's name is intact"
        save(new, 6.5)
        prune(path, 1, 0)
        assert [p.name for p in path.iterdir()] == [new.name], "nothing else is left"
        assert held(new) == 6.5


def test_while_a_directory_is_replaced(tmp_path: Path) -> None:
    for path in interrupted(tmp_path, lambda path: save(path / "task-00_step-00000004", 5.0)):
        tidy(path)
        assert held(path / "task-00_step-00000004") in (4.0, 5.0)
        assert sorted(p.name for p in path.iterdir()) == ["task-00_step-00000002", "task-00_step-00000004"]


def test_while_a_file_is_replaced(tmp_path: Path) -> None:
    for number in range(1, 20):
        file = tmp_path / f"{number}.json"
        old, new = {"old": [1] * 100}, {"new": [2] * 100}
        write_json(file, old)
        went = ended_after(number, lambda: write_json(file, new))  # noqa: B023
        assert json.loads(file.read_text()) in ((old, new) if went else (new,))
        if not went:
            return
    pytest.fail("the work never ended by itself")
