"""Faults while training: a loss that breaks, a disk that is full, memory that is refused. Nothing saved is lost."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import log_of, run_of, snapshots, status_of
from safetensors.torch import load_file

import kaizen.checkpoint
import kaizen.data.images
import kaizen.state
from kaizen.cli import parse_arguments, resolve
from kaizen.commands.train import main
from kaizen.directory import RunDirectory
from kaizen.errors import ConfigError, explained
from kaizen.evaluation import evaluator
from kaizen.learner import TERMS, Learner
from kaizen.parallel import Parallel
from kaizen.stepping import Stepper
from kaizen.writer import Writer

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
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "checkpoints/task-01_step-00000008" in said[0]
    assert "No space left on device; what was saved before is kept" in said[0]
    assert not list(run.glob("*/.*")), "nor does what was half written take room"
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
        status = status_of(disk / "run")
        assert status["state"] == "failed"
        assert "No space left" in status["reason"]
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
    errors = [line for line in done.stderr.splitlines() if line.startswith("error") or "Traceback" in line]
    assert len(errors) == 1
    assert errors[0].startswith("error: training failed: not enough memory")
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


def test_a_file_that_may_not_grow_ends_the_run_in_one_line(tiny: list[str], tmp_path: Path) -> None:
    """A quota as the kernel sets it: files of this process end at 20 kB."""
    script = tmp_path / "limited.py"
    script.write_text(
        "import resource, sys\n"
        "from kaizen.commands.train import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    assert main([*short(tiny), "--run.dir", str(tmp_path / "other")]) == 0, "the images are decoded before"
    command = [sys.executable, str(script), *short(tiny)]
    env = {**os.environ, "KAIZEN_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3, done.stderr[-2000:]
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    assert status_of(run_of(tiny))["state"] == "failed"
    assert main(short(tiny)) == 0
    assert snapshots(run_of(tiny)) == snapshots(tmp_path / "other")


def test_who_was_taken_over_writes_nothing_more(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tiny)
    step = Stepper.step

    def taken(self: Stepper, number: int) -> Any:
        if number == 2:
            (run / ".lock").write_text(json.dumps({"token": "theirs"}))
            (run / "status.json").write_text(json.dumps({"state": "theirs"}))
        return step(self, number)

    monkeypatch.setattr(Stepper, "step", taken)
    assert main(short(tiny)) == 3
    assert "was taken over by another process" in capsys.readouterr().err
    assert status_of(run) == {"state": "theirs"}
    assert json.loads((run / ".lock").read_text()) == {"token": "theirs"}


def test_a_run_that_began_in_between_is_not_overwritten(tiny: list[str]) -> None:
    run, parallel = run_of(tiny), Parallel()
    late = RunDirectory(run, resolve(*parse_arguments([*tiny, "--run.seed", "7"]))[1], parallel)
    late.lock()
    assert main([*short(tiny), "--stream.tasks", "2"]) == 0
    held = (run / "config.yaml").read_text()
    with pytest.raises(ConfigError, match=r"run.dir: .* holds a run of another configuration"):
        late.claim("digits", None, "")
    late.release()
    assert (run / "config.yaml").read_text() == held
    assert status_of(run)["state"] == "done"


def test_a_checkpoint_under_another_name_is_set_aside(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run, arguments = run_of(tiny), short(tiny)
    (run / "checkpoints").mkdir(parents=True)
    assert main(arguments) == 0
    kept = max((run / "checkpoints").iterdir())
    shutil.copytree(kept, kept.with_name(kept.name[:-8] + "99999999"))
    shutil.rmtree(run / "tasks" / "task-02")
    capsys.readouterr()
    assert main(arguments) == 0
    assert "step-99999999 is" not in (said := capsys.readouterr().out)
    assert "does not belong to" in said
    assert len(list((run / "checkpoints").glob("*99999999.broken"))) == 1


def test_what_killed_processes_left_is_taken_away(tiny: list[str]) -> None:
    run = run_of(tiny)
    run.mkdir()
    for name in (".status.json.77.tmp", ".results.json.77.tmp", ".results.json.78.tmp"):
        (run / name).touch()
    os.utime(run / ".results.json.77.tmp", (1, 1))
    assert main(short(tiny)) == 0
    assert [path.name for path in run.glob(".*")] == [".results.json.78.tmp"], "an evaluation may be writing it"


def test_a_stop_while_images_are_decoded(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, cache = run_of(tiny), tmp_path / "cache"
    run.mkdir()
    square, done = kaizen.data.images.square, 0

    def watched(*args: Any) -> Any:
        nonlocal done
        done += 1
        if done == 10:
            (run / "stop").touch()
        return square(*args)

    monkeypatch.setattr(kaizen.data.images, "square", watched)
    monkeypatch.setattr(kaizen.data.images, "CHUNK_BYTES", 1000)
    assert main([*short(tiny), "--data.cache_dir", str(cache)]) == 75
    assert "stopped by file" in capsys.readouterr().err
    assert done < 30
    assert not list(cache.iterdir())


def test_a_stop_while_a_probe_is_fitted(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, arguments = run_of(tiny), [*short(tiny), "--eval.readers", "[classifier,linear_probe_seen]"]
    fit, fits = evaluator.fit_probe, 0

    def stopped(*args: Any) -> Any:
        nonlocal fits
        fits += 1
        if fits == 2:
            (run / "stop").touch()
        return fit(*args)

    with monkeypatch.context() as patch:
        patch.setattr(evaluator, "fit_probe", stopped)
        assert main(arguments) == 75
    assert fits == 2
    assert status_of(run)["state"] == "stopped"
    assert not (run / "stop").exists()
    results = json.loads((run / "results.json").read_text())
    assert results["readers"]["classifier"]["matrix"] == []
    assert main(arguments) == 0
    assert main([*arguments, "--run.dir", str(tmp_path / "other")]) == 0
    assert snapshots(run) == snapshots(tmp_path / "other")


def test_a_checkpoint_that_is_written_while_steps_go_on_holds_its_own_step(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The disk takes its time; what it is given is a copy, and the next checkpoint waits for it."""
    run, arguments = run_of(tiny), [*short(tiny), "--run.keep_checkpoints", "100"]
    write, under_way, step, overlapped = kaizen.state.write_directory, 0, Stepper.step, 0

    def slow(path: Path, *args: Any) -> None:
        nonlocal under_way
        under_way += 1
        assert under_way == 1, "one at a time"
        time.sleep(0.3)
        write(path, *args)
        under_way -= 1

    def watched(self: Stepper, number: int) -> Any:
        nonlocal overlapped
        terms = step(self, number)
        overlapped += under_way
        return terms

    with monkeypatch.context() as patch:
        patch.setattr(kaizen.state, "write_directory", slow)
        patch.setattr(Stepper, "step", watched)
        assert main(arguments) == 0
    assert overlapped > 0
    assert main([*arguments, "--run.dir", str(tmp_path / "other")]) == 0
    saved = [{f.relative_to(r): f.read_bytes() for f in r.rglob("*.safetensors")} for r in (run, tmp_path / "other")]
    assert saved[0] == saved[1]
    assert any("checkpoints" in str(file) for file in saved[0])


def test_what_goes_wrong_beside_the_training_ends_the_run(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(path: Path, *args: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(kaizen.state, "write_directory", refused)
    assert main(short(tiny)) == 3
    assert "task-00_step-00000002: Input/output error" in capsys.readouterr().err
    assert status_of(run_of(tiny))["state"] == "failed"


def test_only_what_the_system_refuses_is_explained_away() -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/file")
    assert str(explained(full)) == "a/file: No space left on device; what was saved before is kept"
    missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "no-such-compiler")
    assert explained(missing) is missing, "its traceback is what tells"
    assert explained(bare := OSError(errno.ENOSPC, "no name")) is bare
    refused = ConfigError("file", "cannot be read (Cannot allocate memory)")
    assert explained(refused) is refused
    for error in (MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")):
        assert str(explained(error)).startswith("not enough memory (")


def test_a_save_that_nobody_waits_for_any_more_tells_that_it_failed(capsys: pytest.CaptureFixture[str]) -> None:
    def refused() -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    writer = Writer()
    writer.submit(refused)
    writer.close()
    assert "note: the checkpoint under way was not written ([Errno 5] Input/output error)" in capsys.readouterr().err
