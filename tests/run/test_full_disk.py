"""A full disk, a read-only disk and a quota: one line names the file, and no saved file is lost."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import run_of, short, snapshots, status_of

import kaizen.data.images
import kaizen.run.checkpoint
import kaizen.training.state
from kaizen.commands.train import main
from kaizen.errors import ConfigError, explained

ROOT = Path(__file__).parents[2]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs with these options; skips the test without the permission."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(options: str) -> Path:
        refused = (
            os.geteuid()
            or subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=False).returncode
        )
        if refused:
            pytest.skip("a tmpfs cannot be mounted here, which takes root")
        return disk

    yield mount
    if disk.is_mount():
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_ends_the_run_with_the_file_name_and_keeps_everything_saved(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run, arguments = run_of(tiny), short(tiny)
    save_file, calls = kaizen.run.checkpoint.save_file, 0

    def full(tensors: Any, file: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 12:
            file.write_bytes(b"\0" * 100)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        save_file(tensors, file)

    with monkeypatch.context() as patch:
        patch.setattr(kaizen.run.checkpoint, "save_file", full)
        assert main(arguments) == 3
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "checkpoints/task-01_step-00000008" in said[0]
    assert "No space left on device; what was saved before is kept" in said[0]
    assert not list(run.glob("*/.*")), "half-written files take no space"
    status = status_of(run)
    assert (status["state"], status["exit_code"]) == ("failed", 3)
    assert "No space left" in status["reason"]
    assert main(arguments) == 0
    assert main([*arguments, "--run.dir", str(tmp_path / "other")]) == 0
    assert snapshots(run) == snapshots(tmp_path / "other")


def test_a_small_disk_that_is_full(tiny: list[str], tmp_path: Path, mounted: Callable[[str], Path]) -> None:
    """A file system of 300 kB."""
    disk = mounted("size=300k")
    arguments = [*short(tiny), "--run.dir", str(disk / "run")]
    assert main(arguments) == 3
    status = status_of(disk / "run")
    assert status["state"] == "failed"
    assert "No space left" in status["reason"]
    subprocess.run(["mount", "-o", "remount,size=30m", str(disk)], check=True)
    assert main(arguments) == 0
    assert main([*short(tiny), "--run.dir", str(tmp_path / "other")]) == 0
    assert snapshots(disk / "run") == snapshots(tmp_path / "other")


def test_a_read_only_directory_is_one_message(
    tiny: list[str], mounted: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    disk = mounted("ro")
    assert main([*short(tiny), "--run.dir", str(disk / "run")]) == 2
    assert "run.dir" in (said := capsys.readouterr().err)
    assert "Read-only file system" in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_file_that_may_not_grow_ends_the_run_in_one_line(tiny: list[str], tmp_path: Path) -> None:
    """A limit of the kernel: no file of this process grows beyond 20 kB."""
    script = tmp_path / "limited.py"
    script.write_text(
        "import resource, sys\n"
        "from kaizen.commands.train import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    assert main([*short(tiny), "--run.dir", str(tmp_path / "other")]) == 0, "this decodes the images"
    command = [sys.executable, str(script), *short(tiny)]
    env = {**os.environ, "KAIZEN_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3, done.stderr[-2000:]
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    assert status_of(run_of(tiny))["state"] == "failed"
    assert main(short(tiny)) == 0
    assert snapshots(run_of(tiny)) == snapshots(tmp_path / "other")


def test_only_errors_of_the_machine_become_one_line() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/file")
    assert str(explained(full)) == "a/file: No space left on device; what was saved before is kept"
    missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "no-such-compiler")
    assert explained(missing) is missing, "its traceback is needed"
    assert explained(bare := OSError(errno.ENOSPC, "no name")) is bare
    refused = ConfigError("file", "cannot be read (Cannot allocate memory)")
    assert explained(refused) is refused
    for error in (MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")):
        assert str(explained(error)).startswith("not enough memory (")
