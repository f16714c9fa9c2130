"""A process of a run dies, raises or freezes: the others end soon, report the reason, and the run can be resumed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from conftest import TINY, Launcher
from runs import snapshots, status_of, wait_for_step

from kaizen.errors import ConfigError, TrainingFailed
from kaizen.parallel.peers import GRACE, HURRIED, LOST, Failure, Peers, describe, is_of_others
from kaizen.run.checkpoint import checkpoints, read_state

ROOT = Path(__file__).parents[2]
LOOK = 0.02
CLOSED = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4711. Check the logs.\n")


class Launch:
    """Two processes under torchrun; rank 1 cannot read the images of draw number `step`."""

    def __init__(self, out: Path, cache: str, step: int = 0, look: str = "") -> None:
        self.out, self.run = out, out / "run"
        for file in out.glob("pid-*"):
            file.unlink()
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command += [str(ROOT / "tests" / "parallel" / "failing_process.py"), str(out), str(step), "digits", *TINY]
        command += ["--data.cache_dir", cache, "--run.dir", str(self.run)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "KAIZEN_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
        self.process = subprocess.Popen(
            command, env={**env, "KAIZEN_LOOK_SECONDS": look}, cwd=ROOT, stderr=subprocess.PIPE, text=True
        )

    def signal(self, rank: int, number: signal.Signals, step: int) -> None:
        """Send a signal to one process once a step is logged."""
        wait_for_step(self.run, step, lambda: self.process.poll() is None)
        os.kill(int((self.out / f"pid-{rank}").read_text()), number)

    def end(self, seconds: float) -> str:
        """Wait until the processes and the launcher have ended, which must be soon; returns what they printed."""
        began = time.monotonic()
        said = self.process.communicate(timeout=120)[1]
        assert time.monotonic() - began < seconds, said
        print(f"ended after {time.monotonic() - began:.1f} s")
        return said


def newest(run: Path) -> int:
    """Step of the newest checkpoint, which must be intact."""
    path = checkpoints(run / "checkpoints")[-1][2]
    return int(read_state(path)["step"])


@pytest.mark.slow
def test_the_error_of_a_process_reaches_the_status_and_stderr(cache: str, tmp_path: Path) -> None:
    launch = Launch(tmp_path, cache, step=9)
    said = launch.end(90)  # from its start
    assert launch.process.returncode != 0
    status = status_of(launch.run)
    assert (status["state"], status["exit_code"], status["task"]) == ("failed", 3, 1)
    assert status["reason"] == "process 1: OSError: the images are missing"
    assert said.count("OSError: the images are missing") >= 2, "the traceback of process 1, and the report of process 0"
    assert "error: training failed: process 1: OSError: the images are missing; " in said
    assert newest(launch.run) == 8


@pytest.mark.slow
def test_a_run_whose_processes_were_killed_resumes_byte_for_byte(
    cache: str, tmp_path: Path, launcher: Launcher
) -> None:
    (tmp_path / "killed").mkdir()
    for rank, step in ((1, 9), (0, 20)):
        launch = Launch(tmp_path / "killed", cache)
        launch.signal(rank, signal.SIGKILL, step)
        said = launch.end(60)
        assert launch.process.returncode != 0
        status = status_of(launch.run)
        assert (status["state"], status["exit_code"]) == ("failed", 3)
        assert status["reason"].startswith(f"process {rank} died (")
        assert f"error: training failed: process {rank} died (" in said
        assert status["step"] - 4 <= newest(launch.run) <= status["step"]
    launch = Launch(tmp_path / "killed", cache)
    launch.end(240)
    assert launch.process.returncode == 0
    whole = ["digits", *TINY, "--data.cache_dir", cache, "--run.dir", str(tmp_path / "whole")]
    assert launcher.run_several(2, whole) == [0, 0]
    assert snapshots(tmp_path / "killed" / "run") == snapshots(tmp_path / "whole")


@pytest.mark.slow
def test_a_frozen_process_is_noticed(cache: str, tmp_path: Path) -> None:
    launch = Launch(tmp_path, cache, look="0.2")
    launch.signal(1, signal.SIGSTOP, 9)
    said = launch.end(60)
    status = status_of(launch.run)
    assert (status["state"], status["exit_code"]) == ("failed", 3)
    assert status["reason"] == "process 1 died or is frozen: no sign of life for 4 s"
    assert f"error: {status['reason']}\n" in said


class Process:
    """The peers of one process, and a record of their actions."""

    def __init__(self, store: dist.Store, rank: int, world: int) -> None:
        self.written: list[Failure] = []
        self.ended: list[int] = []
        self.over = threading.Event()
        self.peers = Peers(store, rank, world, LOOK, self._end)
        self.hurried = False
        self.peers.watch(self.written.append, lambda: self.hurried)

    def _end(self, code: int) -> None:
        self.ended.append(code)
        self.over.set()
        self.peers._left.set()


@pytest.fixture
def start() -> Iterator[Callable[[int], list[Process]]]:
    """Starts the processes of a run, as threads around one store."""
    started: list[Process] = []

    def begin(world: int) -> list[Process]:
        store = dist.HashStore()
        started.extend(Process(store, rank, world) for rank in range(world))
        return started

    yield begin
    for process in started:
        process.peers._left.set()
        process.peers._ending = None  # otherwise pytest would end like a failed run


def die(process: Process) -> None:
    """No further sign of life."""
    process.peers._left.set()


def test_a_count_that_no_longer_changes_ends_all_other_processes(start: Callable[[int], list[Process]]) -> None:
    processes = start(4)
    time.sleep(LOOK * LOST * 1.5)
    assert not any(process.over.is_set() for process in processes), "all of them are alive"
    die(processes[2])
    die(processes[3])
    for process in processes[:2]:
        assert process.over.wait(LOOK * LOST * 10)
        assert process.ended == [3]
        reasons = [failure.reason for failure in process.written]
        assert reasons == ["process 2 died or is frozen: no sign of life for 0 s"]


def test_a_signal_shortens_the_wait(start: Callable[[int], list[Process]]) -> None:
    one, other = start(2)
    one.hurried = True
    die(other)
    time.sleep(LOOK * HURRIED * 0.5)
    assert not one.over.is_set()
    assert one.over.wait(LOOK * LOST)


def test_a_process_that_leaves_is_not_taken_for_dead(start: Callable[[int], list[Process]]) -> None:
    one, two, three = start(3)
    left = threading.Thread(target=two.peers.leave)
    left.start()
    time.sleep(LOOK * LOST * 1.5)
    assert not one.over.is_set()
    left.join()
    assert two.peers.leave() is None, "the others are alive, and may leave later"
    threading.Thread(target=three.peers.leave).start()
    assert one.peers.leave() is None


def test_a_process_that_leaves_reports_who_died(start: Callable[[int], list[Process]]) -> None:
    one, two = start(2)
    die(two)
    time.sleep(LOOK * 2)
    failure = one.peers.leave()
    assert failure is not None
    assert (failure.code, failure.reason) == (3, "process 1 died")


def test_a_store_that_no_longer_answers_ends_the_process() -> None:
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    client = dist.TCPStore(
        "127.0.0.1", server.port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=5)
    )
    one = Process(client, 1, 2)
    time.sleep(LOOK * 2)
    assert not one.over.is_set()
    del server
    assert one.over.wait(LOOK * LOST * 5)
    assert "store of the processes no longer answers" in one.written[0].reason
    one.peers._ending = None


def test_all_processes_report_the_reason_of_the_first_that_failed(start: Callable[[int], list[Process]]) -> None:
    one, two = start(2)
    found: list[Failure] = []
    waiting = threading.Thread(target=lambda: found.append(one.peers.failure(CLOSED)))
    waiting.start()
    time.sleep(LOOK)
    told = two.peers.failure(OSError("no images"))
    waiting.join()
    assert (told.code, told.reason) == (3, "process 1: OSError: no images")
    assert found == [replace(told, reports=True, follows=True)]
    late = two.peers.failure(ConfigError("optim.lr", "is odd"))
    assert late == replace(told, reports=False), "the main process has reported it by now"


def test_without_a_reason_the_failure_names_who_died(start: Callable[[int], list[Process]]) -> None:
    _, two, three = start(3)
    die(three)
    time.sleep(LOOK * 2)
    failure = two.peers.failure(CLOSED)
    assert failure.reason == "process 2 died (Connection closed by peer [127.0.0.1]:4711)"
    assert failure.reports, "the main process has not reported it"


def test_a_process_that_hangs_after_a_failure_elsewhere_is_ended(start: Callable[[int], list[Process]]) -> None:
    one, two = start(2)
    two.peers.failure(ConfigError("optim.lr", "is odd"))
    assert one.over.wait(LOOK * GRACE * 20)
    assert one.ended == [2]
    assert one.written == [Failure(2, "ConfigError: optim.lr: is odd")]


def test_own_errors_are_distinguished_from_consequences() -> None:
    import torch

    assert is_of_others(CLOSED)
    assert is_of_others(dist.DistBackendError("NCCL communicator was aborted"))
    for error in (
        OSError("gloo"),
        RuntimeError("shapes differ"),
        torch.OutOfMemoryError("NCCL"),
        TrainingFailed("nan"),
    ):
        assert not is_of_others(error)
    assert describe(OSError("no"), 1, 2) == Failure(3, "process 1: OSError: no")
    assert describe(OSError("no"), 0, 1) == Failure(3, "OSError: no")
    assert describe(ConfigError("a", "b"), 1, 2) == Failure(2, "ConfigError: a: b")
