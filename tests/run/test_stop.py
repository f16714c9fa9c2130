"""Requests to stop: the effect of a signal, which file counts, and the end of processes whose launcher has ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import kaizen
from kaizen.errors import Stopped
from kaizen.run.stop import LAUNCHED, StopRequest


@pytest.fixture
def stop(tmp_path: Path) -> StopRequest:
    request = StopRequest()
    request.watch(tmp_path)
    request.install()
    return request


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_program_that_has_nothing_to_save(stop: StopRequest, number: signal.Signals) -> None:
    with pytest.raises(Stopped, match=number.name):
        os.kill(os.getpid(), number)


def test_after_defer_a_signal_sets_a_flag_and_a_second_one_changes_nothing(stop: StopRequest) -> None:
    stop.defer()
    assert stop.asked() is None
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.asked() == "SIGTERM"


def test_a_second_signal_does_not_interrupt_what_the_first_one_began(stop: StopRequest) -> None:
    with pytest.raises(Stopped):
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_file_counts_whenever_it_was_touched_after_the_start(stop: StopRequest, tmp_path: Path) -> None:
    assert stop.asked() is None
    (tmp_path / "stop").touch()
    assert stop.asked() == f"file {tmp_path / 'stop'}"
    request = StopRequest()
    request.watch(tmp_path)
    assert request.asked() is not None, "touched while the program was still starting"


def test_a_file_left_by_a_killed_run_stops_nothing_until_it_is_touched_again(stop: StopRequest, tmp_path: Path) -> None:
    file = tmp_path / "stop"
    file.touch()
    os.utime(file, (1, kaizen.STARTED - 1))
    stop.watch(tmp_path)
    assert stop.asked() is None
    file.touch()
    assert stop.asked() == f"file {file}"


@pytest.mark.parametrize("jump", [-1e6, 1e6])
def test_a_clock_that_jumps_hides_no_file(jump: float, tmp_path: Path) -> None:
    """The clock of the file's time stamp (a file server's, or this machine's) is far before or after ours."""
    file = tmp_path / "stop"
    file.touch()
    os.utime(file, (1, kaizen.STARTED - 10))
    request = StopRequest()
    request.watch(tmp_path)
    assert request.asked() is None
    os.utime(file, (1, kaizen.STARTED + jump))
    assert request.asked() == f"file {file}"
    file.unlink()
    later = StopRequest()
    later.watch(tmp_path)
    file.touch()
    os.utime(file, (1, kaizen.STARTED + jump))
    with pytest.raises(Stopped, match="stop"):
        later.check()


def test_without_a_run_directory_nothing_is_asked(tmp_path: Path) -> None:
    request = StopRequest()
    assert request.asked() is None
    request.watch(tmp_path / "no" / "run")
    assert request.asked() is None


LAUNCHER = """
import subprocess, sys
worker = "import time, kaizen.run.stop; kaizen.run.stop.end_with_launcher(); print('ready', flush=True); time.sleep(60)"
process = subprocess.Popen([sys.executable, "-c", worker], stdout=subprocess.PIPE)
process.stdout.readline()
print(process.pid, flush=True)
process.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux sends a signal on the parent's death")
@pytest.mark.parametrize("name", ["TORCHELASTIC_RUN_ID", "WORLD_SIZE"])
def test_a_process_ends_with_its_launcher_even_if_that_is_killed(name: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key != LAUNCHED} | {name: "1"}
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER], env=environment, stdout=subprocess.PIPE, text=True)
    assert launcher.stdout
    worker = int(launcher.stdout.readline())
    launcher.kill()
    launcher.wait()
    launched = name == LAUNCHED
    deadline = time.monotonic() + (5 if launched else 0.5)
    while lives(worker) and time.monotonic() < deadline:
        time.sleep(0.02)
    if launched:
        assert not lives(worker)
    else:
        assert lives(worker), "a process under nohup has no launcher, even if a batch system sets WORLD_SIZE"
        os.kill(worker, signal.SIGKILL)


def lives(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
