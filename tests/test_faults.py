"""Faults while training: a loss that breaks, a disk that is full, memory that is refused. Nothing saved is lost."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import log_of, run_of, snapshots, status_of
from safetensors.torch import load_file

import kaizen.checkpoint
from kaizen.commands.train import main
from kaizen.learner import TERMS, Learner

ROOT = Path(__file__).parent.parent


def short(tiny: list[str]) -> list[str]:
    return [*tiny, "--stream.tasks", "3", "--optim.epochs", "1", "--optim.warmup_epochs", "0"]


@pytest.mark.parametrize("term", TERMS)
def test_a_term_that_is_not_finite_ends_the_run_and_is_never_saved(
    term: str, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, arguments = run_of(tiny), short(tiny)
    forward, calls = Learner.forward, 0

    def broken(self: Learner, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        terms, projections = forward(self, *args)
        return ({**terms, term: terms[term] * torch.nan} if calls == 9 else terms), projections

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "forward", broken)
        assert main(arguments) == 3
    assert f"loss/{term} is nan" in capsys.readouterr().err
    status = status_of(run)
    assert (status["state"], status["exit_code"], status["step"]) == ("failed", 3, 9)
    for file in run.rglob("*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(file).values()), file
    assert main(arguments) == 0, "the same command goes on"
    assert [line["step"] for line in log_of(run)] == list(range(1, len(log_of(run)) + 1))


def test_a_full_disk_ends_the_run_by_name_and_costs_nothing_that_was_saved(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run, arguments = run_of(tiny), short(tiny)
    save_file, calls = kaizen.checkpoint.save_file, 0

    def full(tensors: Any, file: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 12:
            file.write_bytes(b"\0" * 100)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        save_file(tensors, file)

    with monkeypatch.context() as patch:
        patch.setattr(kaizen.checkpoint, "save_file", full)
        assert main(arguments) == 3
    assert "No space left on device" in capsys.readouterr().err
    status = status_of(run)
    assert (status["state"], status["exit_code"]) == ("failed", 3)
    assert "No space left" in status["reason"]
    assert main(arguments) == 0
    assert main([*arguments, "--run.dir", str(tmp_path / "other")]) == 0
    assert snapshots(run) == snapshots(tmp_path / "other")


def test_a_small_disk_that_is_full(tiny: list[str], tmp_path: Path) -> None:
    """A file system of 300 kB, a real one where we may mount it."""
    if os.geteuid():
        pytest.skip("mounting needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        arguments = [*short(tiny), "--run.dir", str(disk / "run")]
        assert main(arguments) == 3
        assert status_of(disk / "run")["state"] in ("failed", "running"), "there may be no room for it either"
        subprocess.run(["mount", "-o", "remount,size=30m", str(disk)], check=True)
        assert main(arguments) == 0
        assert main([*short(tiny), "--run.dir", str(tmp_path / "other")]) == 0
        assert snapshots(disk / "run") == snapshots(tmp_path / "other")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_memory_that_is_refused_ends_the_run_and_the_same_command_goes_on(tiny: list[str], tmp_path: Path) -> None:
    run, arguments = run_of(tiny), short(tiny)
    script = tmp_path / "refused.py"
    script.write_text(
        "import resource, sys\n"
        "from kaizen.commands.train import main\n"
        "from kaizen.stepping import Stepper\n"
        "step, calls = Stepper.step, 0\n"
        "def refused(self, number):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if calls == 9:\n"
        "        import torch\n"
        "        held = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "        resource.setrlimit(resource.RLIMIT_AS, (held + 2**26, resource.RLIM_INFINITY))\n"
        "        torch.empty(2**28)\n"
        "    return step(self, number)\n"
        "Stepper.step = refused\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    env = {**os.environ, "KAIZEN_THREADS": "1"}
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3, done.stderr[-2000:]
    assert "not enough memory" in done.stderr or "can't allocate memory" in done.stderr
    status = status_of(run)
    assert (status["state"], status["exit_code"]) == ("failed", 3)
    assert main(arguments) == 0
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_a_read_only_directory_is_one_message(
    tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if os.geteuid():
        pytest.skip("mounting needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        assert main([*short(tiny), "--run.dir", str(disk / "run")]) == 2
        assert "run.dir" in (said := capsys.readouterr().err)
        assert "Read-only file system" in said
        assert len(said.strip().splitlines()) == 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)
