"""Requests to stop: what a signal does when, and which file counts."""

import os
import signal
from pathlib import Path

import pytest

from kaizen.errors import Stopped
from kaizen.stop import StopRequest


@pytest.fixture
def stop(tmp_path: Path) -> StopRequest:
    request = StopRequest(tmp_path)
    request.install()
    return request


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_program_that_has_nothing_to_save(stop: StopRequest, number: signal.Signals) -> None:
    with pytest.raises(Stopped, match=number.name):
        os.kill(os.getpid(), number)


def test_from_defer_on_a_signal_is_a_flag_and_a_second_one_changes_nothing(stop: StopRequest) -> None:
    stop.defer()
    assert stop.asked() is None
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.asked() == "SIGTERM"


def test_a_second_signal_does_not_interrupt_what_the_first_one_began(stop: StopRequest) -> None:
    with pytest.raises(Stopped):
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_file_counts_once_it_is_touched(stop: StopRequest) -> None:
    assert stop.asked() is None
    stop.file.touch()
    assert stop.asked() == f"file {stop.file}"
    stop.clear()
    stop.clear()
    assert not stop.file.exists()


def test_a_file_left_by_a_killed_run_stops_nothing_until_it_is_touched_again(tmp_path: Path) -> None:
    file = tmp_path / "stop"
    file.touch()
    os.utime(file, ns=(1, 1))
    request = StopRequest(tmp_path)
    assert request.asked() is None
    file.touch()
    assert request.asked() == f"file {file}"


def test_a_run_directory_that_is_not_there_yet_asks_for_nothing(tmp_path: Path) -> None:
    request = StopRequest(tmp_path / "no" / "run")
    assert request.asked() is None
    request.clear()
