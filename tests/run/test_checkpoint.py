"""Directories of tensors: complete or absent, checked before use, without pickle."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kaizen.errors import ConfigError
from kaizen.run.checkpoint import (
    checkpoints,
    newest_intact,
    prune,
    read_state,
    seal,
    tidy,
    write_directory,
    write_json,
)
from kaizen.run.tensors import load_into, load_optimizer, optimizer_tensors, read_tensors
from kaizen.training.optim import build_optimizer, parameter_groups, set_rates


def write(path: Path, value: float = 1.0) -> Path:
    shared = torch.full((2, 3), value)
    write_directory(path, {"student": {"a": shared, "b": shared.t()}, "method": {}}, {"step": 7})
    return path


def test_round_trip_with_shared_and_strided_tensors(tmp_path: Path) -> None:
    path = write(tmp_path / "task-00_step-00000007")
    state = read_state(path)
    assert state["step"] == 7
    assert set(state["files"]) == {"student.safetensors", "method.safetensors"}
    assert torch.equal(read_tensors(path / "student.safetensors")["b"], torch.ones(3, 2))
    assert read_tensors(path / "method.safetensors") == {}
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "no temporary directory is left"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o007, 0o660), (0o077, 0o600)])
def test_files_are_readable_as_the_umask_allows(mask: int, mode: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        path = write(tmp_path / "one")
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {mode}


def test_equal_tensors_give_equal_files(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    for file in one.iterdir():
        assert file.read_bytes() == (two / file.name).read_bytes()


def test_a_directory_is_replaced_completely(tmp_path: Path) -> None:
    path = write(tmp_path / "task-00")
    write(path, 2.0)
    assert read_tensors(path / "student.safetensors")["a"].unique().item() == 2.0
    assert [p.name for p in tmp_path.iterdir()] == ["task-00"]


def damage(path: Path, how: str) -> None:
    file = path / "student.safetensors"
    if how == "flipped":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    elif how == "truncated":
        file.write_bytes(file.read_bytes()[:-4])
    elif how == "missing":
        file.unlink()
    elif how == "state cut off":
        (path / "state.json").write_text((path / "state.json").read_text()[:20])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "digit of the state":
        (path / "state.json").write_text((path / "state.json").read_text().replace('"step": 7', '"step": 1'))
    else:
        state = json.loads((path / "state.json").read_text())
        del state["sha256"]
        if how == "outside":
            state["files"]["../student.safetensors"] = state["files"].pop("student.safetensors")
        elif how == "no files":
            state["files"] = {}
        (path / "state.json").write_text(json.dumps({**state, "sha256": seal(state)}))


DAMAGES = ["flipped", "truncated", "missing", "empty", "state cut off", "digit of the state", "outside", "no files"]


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_previous_one_is_used(
    how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = write(tmp_path / "task-01_step-00000010"), write(tmp_path / "task-01_step-00000020")
    damage(bad, how)
    with pytest.raises(ConfigError):
        read_state(bad, ["student"])
    found = newest_intact(tmp_path, 1, lambda path: read_state(path, ["student"]))
    assert found is not None
    assert found[0] == good
    assert "task-01_step-00000020" in capsys.readouterr().out
    assert (tmp_path / "task-01_step-00000020.broken").is_dir()
    assert newest_intact(tmp_path, 2) is None


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        write(tmp_path / f"task-00_step-{step:08d}")
    prune(tmp_path, 2, 0)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["task-00_step-00000010", "task-00_step-00000100"]


def test_prune_deletes_checkpoints_of_later_tasks(tmp_path: Path) -> None:
    for task, step in ((3, 31), (4, 45), (4, 48), (100, 990)):
        write(tmp_path / f"task-{task:02d}_step-{step:08d}")
    prune(tmp_path, 2, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["task-03_step-00000031"]


def test_checkpoints_are_ordered_by_their_numbers(tmp_path: Path) -> None:
    for task in (2, 99, 100):
        write(tmp_path / f"task-{task:02d}_step-{task:08d}")
    (tmp_path / "task-100_step-00000100.broken").mkdir()
    (tmp_path / "task-notes").mkdir()
    assert [(task, step) for task, step, _ in checkpoints(tmp_path)] == [(2, 2), (99, 99), (100, 100)]


def test_tidy_cleans_up_after_a_kill(tmp_path: Path) -> None:
    write(tmp_path / "task-00", 1.0).rename(tmp_path / ".task-00.old")
    write(tmp_path / "task-01", 2.0)
    write(tmp_path / "whole", 3.0).rename(tmp_path / ".task-01.old")
    for name in (".task-00.tmp", ".task-02.tmp", ".task-00_step-00000005.gone"):
        (tmp_path / name).mkdir()
    tidy(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["task-00", "task-01"]
    for name, value in (("task-00", 1.0), ("task-01", 2.0)):
        assert read_tensors(tmp_path / name / "student.safetensors")["a"].unique().item() == value
    tidy(tmp_path / "not there")


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    module = nn.ModuleDict({"encoder": nn.Linear(2, 2)})
    good = {"encoder.weight": torch.ones(2, 2), "encoder.bias": torch.ones(2)}
    load_into(module, good, ("encoder.",), tmp_path)
    assert module["encoder"].weight.sum() == 4
    with pytest.raises(ConfigError, match=r"encoder\.bias is \[3\]"):
        load_into(module, {**good, "encoder.bias": torch.ones(3)}, ("encoder.",), tmp_path)
    with pytest.raises(ConfigError, match=r"lacks \['encoder.bias'\]"):
        load_into(module, {"encoder.weight": torch.ones(2, 2)}, ("encoder.",), tmp_path)
    with pytest.raises(ConfigError, match="unknown"):
        load_into(module, {**good, "encoder.more": torch.ones(1)}, ("encoder.",), tmp_path)


@pytest.mark.parametrize(
    ("name", "fused"), [("lars", False), ("sgd", False), ("adamw", False), ("sgd", True), ("adamw", True)]
)
def test_a_restored_optimizer_continues_bit_for_bit(name: str, fused: bool) -> None:
    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        module = nn.ModuleDict({"encoder": nn.Linear(4, 4), "classifier": nn.Linear(4, 2)})
        groups = parameter_groups(module, 0.1, 0.05, 1e-2)
        return module, build_optimizer(name, groups, 0.9, 0.02, 0.1, fused=fused)

    def steps(module: nn.Module, optimizer: torch.optim.Optimizer, first: int, count: int) -> None:
        for step in range(first, first + count):
            rates = [0.1 / (1 + step)] * len(optimizer.param_groups)
            set_rates(optimizer, torch.tensor(rates), rates)
            x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            module["classifier"](module["encoder"](x)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    straight, optimizer = made()
    steps(straight, optimizer, 0, 5)
    first, optimizer = made()
    steps(first, optimizer, 0, 3)
    saved = {key: t.clone() for key, t in optimizer_tensors(optimizer, first).items()}
    weights = {key: t.clone() for key, t in first.state_dict().items()}
    second, optimizer = made()
    second.load_state_dict(weights)
    load_optimizer(optimizer, second, saved, Path("optimizer.safetensors"))
    steps(second, optimizer, 3, 2)
    for one, other in zip(straight.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("fused", [False, True])
def test_an_optimizers_state_moves_between_fused_and_plain_kernels(name: str, fused: bool) -> None:
    """As when a run moves between a GPU and a CPU."""
    module = nn.ModuleDict({"encoder": nn.Linear(4, 4)})
    groups = [parameter_groups(module, 0.1, 0.05, 1e-2) for _ in range(2)]
    one, other = (
        build_optimizer(name, g, 0.9, 0.02, 0.1, fused=f) for g, f in zip(groups, (fused, not fused), strict=True)
    )
    module["encoder"](torch.ones(2, 4)).sum().backward()
    one.step()
    saved = {key: t.clone() for key, t in optimizer_tensors(one, module).items()}
    load_optimizer(other, module, saved, Path("optimizer.safetensors"))
    assert optimizer_tensors(other, module).keys() == saved.keys()
    before = module["encoder"].weight.detach().clone()
    other.step()
    assert not torch.equal(module["encoder"].weight, before)
    assert torch.isfinite(module["encoder"].weight).all()


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("decoder.weight/exp_avg", (2, 2), "no such parameter"),
        ("encoder.weight/exp_avg", (3,), r"parameter is \[2, 2\]"),
    ],
)
def test_an_optimizers_tensor_that_fits_no_parameter_is_named(name: str, shape: tuple[int, ...], said: str) -> None:
    module = nn.ModuleDict({"encoder": nn.Linear(2, 2)})
    optimizer = torch.optim.AdamW(module.parameters())
    with pytest.raises(ConfigError, match=f"optimizer.safetensors: contains {name!r}.*{said}"):
        load_optimizer(optimizer, module, {name: torch.ones(shape)}, Path("optimizer.safetensors"))


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS, errno.EIO])
def test_a_file_system_without_modes_and_without_flushing_of_directories_works(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EIO means that a write has failed, and ends the work."""
    fsync = os.fsync

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    def flush(descriptor: int) -> None:
        (refuse if stat.S_ISDIR(os.fstat(descriptor).st_mode) else fsync)(descriptor)

    for name, function in (("fsync", flush), ("chmod", refuse)):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, function)
            path = tmp_path / name / "task-00_step-00000007"
            if number == errno.EIO:
                with pytest.raises(OSError, match="Input/output error"):
                    write(path)
            else:
                assert read_state(write(path))["step"] == 7


def test_a_write_that_is_refused_names_the_file_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "task-00")

    def refused(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refused)
        with pytest.raises(OSError, match="task-00") as caught:
            write(path, 2.0)
        with pytest.raises(OSError, match=r"status\.json"):
            write_json(tmp_path / "status.json", {})
    assert caught.value.errno == errno.EDQUOT
    assert [p.name for p in tmp_path.iterdir()] == ["task-00"]
    assert read_tensors(path / "student.safetensors")["a"].unique().item() == 1.0
