"""The lock of a run directory: it has one holder at a time, and no dead one."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import Launcher
from runs import run_of, status_of, wait_for_step

from kaizen.commands.train import main
from kaizen.errors import ConfigError, TrainingFailed
from kaizen.run.lock import RunLock

HOLD = "import sys, time; from pathlib import Path; from kaizen.run.lock import RunLock\n"
HOLD += "RunLock(Path(sys.argv[1]), beat=0.05); print('held', flush=True); time.sleep(60)"


def held_elsewhere(directory: Path, **changes: Any) -> None:
    """A lock as a process on another machine would write it."""
    lock = RunLock(directory)
    lock._ended.set()
    text = {**json.loads((directory / ".lock").read_text()), "machine": "another", "host": "node7", "pid": 3}
    (directory / ".lock").write_text(json.dumps({**text, "token": "theirs", **changes}))


def test_a_second_process_is_refused_and_the_message_names_the_holder(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    with pytest.raises(ConfigError, match=rf"run.dir: .* is in use by process {os.getpid()} on .* since 20"):
        RunLock(tmp_path)
    lock.check()
    lock.release()
    assert not list(tmp_path.iterdir())
    RunLock(tmp_path).release()


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=f"process {holder.pid} on"):
        RunLock(tmp_path)
    holder.kill()
    holder.wait()
    began = time.monotonic()
    RunLock(tmp_path).release()
    assert time.monotonic() - began < 2


def test_the_lock_of_a_zombie_is_taken_over(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    holder.kill()
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{holder.pid}").exists()
    RunLock(tmp_path).release()
    holder.wait()


def test_a_reused_process_id_is_not_the_holder(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock._ended.set()
    text = json.loads((tmp_path / ".lock").read_text())
    (tmp_path / ".lock").write_text(json.dumps({**text, "began": "1", "token": "theirs"}))
    RunLock(tmp_path).release()


def test_a_holder_on_another_machine_is_alive_while_its_count_changes(tmp_path: Path) -> None:
    held_elsewhere(tmp_path)
    stop = threading.Event()

    def count() -> None:
        text, number = json.loads((tmp_path / ".lock").read_text()), 0
        while not stop.wait(0.05):
            number += 1
            (tmp_path / ".lock").write_text(json.dumps({**text, "count": number}))

    counting = threading.Thread(target=count)
    counting.start()
    with pytest.raises(ConfigError, match="in use by process 3 on node7"):
        RunLock(tmp_path, stale=2)
    stop.set()
    counting.join()
    began = time.monotonic()
    lock = RunLock(tmp_path, stale=0.5)
    assert 0.4 < time.monotonic() - began < 10
    lock.check()
    lock.release()


@pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
def test_a_half_written_lock_becomes_stale(content: str, tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(content)
    RunLock(tmp_path, stale=0.2).release()


def test_a_read_during_a_write_finds_the_holder(tmp_path: Path) -> None:
    lock = RunLock(tmp_path, beat=60)
    old = (tmp_path / ".lock").read_bytes()
    for lock._count in (9, 10, 10**11):
        new = lock._text().encode()
        assert len(new) == len(old)
        for cut in range(len(new)):
            (tmp_path / ".lock").write_bytes(new[:cut] + old[cut:])
            lock.check()
        old = new
    lock.release()


def test_a_holder_notices_that_its_lock_was_taken_over(tmp_path: Path) -> None:
    lock = RunLock(tmp_path, beat=0.02)
    held_text = (tmp_path / ".lock").read_text()
    (tmp_path / ".lock").unlink()
    other = RunLock(tmp_path)
    with pytest.raises(TrainingFailed, match="taken over by another process"):
        lock.check()
    time.sleep(0.2)
    lock.release()
    other.check()
    assert json.loads(held_text)["token"] != other._mine["token"]
    other.release()


def test_only_one_of_many_processes_gets_a_stale_lock(tmp_path: Path) -> None:
    held_elsewhere(tmp_path)
    won: list[RunLock] = []

    def take() -> None:
        with suppress(ConfigError):
            won.append(RunLock(tmp_path, stale=0.3))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    won[0].check()
    won[0].release()


def test_two_runs_in_one_directory(tiny: list[str], launcher: Launcher, capsys: pytest.CaptureFixture[str]) -> None:
    run, tiny = run_of(tiny), [*tiny, "--optim.epochs", "200"]
    first = launcher.start(tiny)
    wait_for_step(run, 3, first.is_alive)
    assert main(tiny) == 2
    assert "is in use by process" in capsys.readouterr().err
    assert status_of(run)["state"] == "running", "the status is still that of the first run"
    assert first.pid
    os.kill(first.pid, signal.SIGTERM)
    first.join(60)
    assert first.exitcode == 75
    assert not (run / ".lock").exists()
    (run / "stop").touch()
    os.utime(run / "stop", (2e9, 2e9))
    assert launcher.run(tiny) == 75, "it gets the lock, and is asked to stop"
