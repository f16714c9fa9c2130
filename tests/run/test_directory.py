"""A run directory from its lock to its end: created first, removed again if the run never began, its status."""

import json
import os
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from runs import run_of, status_of

import kaizen.evaluation.table
import kaizen.run.directory
import kaizen.training.trainer
from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.commands.train import main
from kaizen.errors import ConfigError
from kaizen.parallel import Parallel
from kaizen.parallel.peers import Failure
from kaizen.run.directory import RunDirectory
from kaizen.run.environment import record_start


def directory_at(path: Path) -> RunDirectory:
    directory = RunDirectory(path, resolve(*parse_arguments(["digits"]))[1], Parallel())
    directory.lock()
    return directory


def test_the_directory_of_a_run_that_never_began_is_removed_with_its_new_parents(tmp_path: Path) -> None:
    directory = directory_at(tmp_path / "a/b/run")
    assert (tmp_path / "a/b/run/.lock").exists()
    directory.release()
    assert not list(tmp_path.iterdir())


def test_a_directory_that_existed_before_or_is_not_empty_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    directory_at(tmp_path / "mine").release()
    assert (tmp_path / "mine").is_dir()
    directory = directory_at(tmp_path / "made")
    (tmp_path / "made/slurm.log").touch()
    directory.release()
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["slurm.log"]


@pytest.mark.parametrize("place", ["file/run", "file", "/proc/nowhere/run"])
def test_a_directory_that_cannot_be_written_is_refused_before_data_are_loaded(
    place: str, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(kaizen.training.trainer, "load_stream", lambda *_: pytest.fail("data are loaded"))
    assert main([*tiny, "--run.dir", str(tmp_path / place)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: run.dir: {tmp_path / place} cannot be ")
    assert error.count("\n") == 1


def test_data_that_do_not_fit_leave_no_directory_behind(tiny: list[str], tmp_path: Path) -> None:
    assert main([*tiny, "--run.dir", str(tmp_path / "new/run"), "--data.source", f"parquet:{tmp_path}/none"]) == 2
    assert main([*tiny, "--run.dir", str(tmp_path / "new/run"), "--stream.tasks", "11"]) == 2
    assert not (tmp_path / "new").exists()


def test_a_run_that_began_here_after_the_first_look_is_not_overwritten(tmp_path: Path) -> None:
    late = RunDirectory(tmp_path / "run", resolve(*parse_arguments(["digits", "--run.seed", "7"]))[1], Parallel())
    first = directory_at(tmp_path / "run")
    first.claim("digits", None, "")
    with pytest.raises(ConfigError, match="is in use by process"):
        late.lock()
    first.release()
    with pytest.raises(ConfigError, match="contains a run of another configuration"):
        late.lock()
    assert not (tmp_path / "run/.lock").exists()


def test_the_status_follows_the_run_every_ten_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, now = directory_at(tmp_path / "run"), 1000.0
    directory.claim("digits", None, "")
    monkeypatch.setattr("kaizen.run.directory.time.monotonic", lambda: now)
    thread, fsync = threading.get_ident(), os.fsync

    def flushed(descriptor: int) -> None:
        assert threading.get_ident() != thread, "a step waits for the disk"
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", flushed)

    def followed(step: int) -> Any:
        directory.position = (2, step)
        directory.follow(30.4)
        if directory._update:
            directory._update.result()
        return status_of(tmp_path / "run")

    status = followed(7)
    assert datetime.fromisoformat(status.pop("updated")).tzinfo
    expected = {"state": "running", "exit_code": None, "task": 2, "step": 7, "seconds_left": 30, "reason": None}
    assert status == expected
    now += 9.9
    assert followed(8)["step"] == 7
    now += 0.2
    assert followed(9)["step"] == 9
    monkeypatch.undo()
    directory.write_failure(Failure(3, "lost"))
    directory._next_update = 0.0
    assert followed(10)["state"] == "failed", "no update replaces how the run ended"
    directory.release()


def test_a_full_disk_does_not_end_a_run_at_a_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = directory_at(tmp_path / "run")
    directory.claim("digits", None, "")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    directory.follow(None)
    assert directory._update
    assert directory._update.result() is None
    assert not list((tmp_path / "run").glob(".status*"))
    directory.release()


class Setting:
    """The part of `Parallel` that `environment` uses."""

    device = Parallel().device

    def __init__(self, **changed: Any) -> None:
        self._setting = Parallel().setting() | changed

    def setting(self) -> dict[str, Any]:
        return self._setting


def test_environment_json_keeps_an_entry_per_start_and_changes_are_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "environment.json"
    changes = [{}, {"gradient_accumulation_steps": 4}, {"gradient_accumulation_steps": 4, "threads_per_process": 77}]
    for number, changed in enumerate(changes):
        record_start(file, Setting(**changed), "digest", 10 * number)  # type: ignore[arg-type]
    held = json.loads(file.read_text())
    assert [start["step"] for start in held["starts"]] == [0, 10, 20]
    assert [start["gradient_accumulation_steps"] for start in held["starts"]] == [1, 4, 4]
    assert all(datetime.fromisoformat(start["time"]) and start["hostname"] for start in held["starts"])
    assert held["data"] == "digest"
    newest = held["starts"][-1]
    assert {key: held[key] for key in held.keys() - {"data", "starts"}} == {
        key: newest[key] for key in newest.keys() - {"time", "hostname", "step"}
    }
    notes = capsys.readouterr().out.splitlines()
    assert len(notes) == 2
    changes = "the run resumes, the loss and the results change from here on"
    assert notes[0] == f"note: gradient_accumulation_steps was 1 and is now 4: {changes}"
    assert notes[1].startswith("note: threads_per_process was ")
    assert notes[1].endswith("is now 77: the run resumes, but not bit for bit")


def test_a_picture_that_cannot_be_drawn_does_not_fail_a_run_that_is_done(
    tiny: list[str], undisturbed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: Any) -> None:
        raise UnicodeEncodeError("latin-1", "╭", 0, 1, "ordinal not in range(256)")

    monkeypatch.setattr(kaizen.evaluation.table, "save_picture", refused)
    before = (undisturbed / "environment.json").read_bytes()
    assert main([*tiny, "--run.dir", str(undisturbed)]) == 0
    assert status_of(undisturbed)["state"] == "done"
    said = capsys.readouterr()
    assert "results.svg was not written ('latin-1' codec" in said.err
    done = f"done: results.json, log.jsonl and all other files of the run are in {undisturbed}"
    assert said.out.splitlines()[-1] == done
    assert (undisturbed / "environment.json").read_bytes() == before, "this start trained nothing"
    assert run_of(tiny) != undisturbed
