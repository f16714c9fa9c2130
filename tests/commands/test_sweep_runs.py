"""Real sweeps: runs fail, are killed, are stopped, and resume."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY
from runs import snapshots, status_of, sweep_file, wait_for_step

from kaizen.cli.sweep import read_sweep
from kaizen.commands import COMMANDS, run
from kaizen.commands.sweep import lock_log


@pytest.fixture
def three(tmp_path: Path, cache: str) -> list[str]:
    """Arguments of a sweep of three tiny runs; the second fails: its memory is smaller than the number of classes."""
    common = shlex.join([*TINY, "--data.cache_dir", cache]).replace("--replay.per_class 4", "")
    lines = [f"digits {common} --replay.per_class 4", f"digits {common} --replay.total 9"]
    file = sweep_file(tmp_path, *lines, f"digits {common} --replay.per_class 4 --preset cassle")
    return ["sweep", str(file), "--run.dir", str(tmp_path / "runs")]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "kaizen", *arguments]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run_paths(arguments: list[str]) -> dict[str, Path]:
    runs = read_sweep(Path(arguments[1]))
    return dict(zip(("plain", "bad", "cassle"), (Path(arguments[3]) / r.name for r in runs), strict=True))


@pytest.mark.slow
def test_a_sweep_that_is_killed_and_stopped_ends_as_its_runs_alone_would_and_tells_the_one_that_fails(
    three: list[str], undisturbed: Path
) -> None:
    paths = run_paths(three)
    killed = start(three)
    wait_for_step(paths["plain"], 8, lambda: killed.poll() is None)
    killed.kill()
    killed.communicate()
    # The run outlives its sweep; the next sweep waits for it and starts the others.
    stopped = start([*three, "--jobs", "2"])
    wait_for_step(paths["cassle"], 8, lambda: stopped.poll() is None)
    stopped.send_signal(signal.SIGTERM)
    out, error = stopped.communicate(timeout=60)
    assert stopped.returncode == 75, error
    assert "the same command resumes it" in error
    assert status_of(paths["cassle"])["state"] == "stopped"
    last = start(three)
    out, error = last.communicate(timeout=120)
    assert last.returncode == 3, error
    assert error == "", "no bar where there is no terminal"
    lines = out.splitlines()
    assert len(lines) == 4
    for name, said in {"plain": "done", "cassle": "done", "bad": "failed"}.items():
        (line,) = (text for text in lines if f" {paths[name].name}: " in text)
        assert line.startswith(said)
        if said == "done":
            accuracy = json.loads((paths[name] / "results.json").read_text())["readers"]["classifier"]["final_accuracy"]
            assert f"final accuracy {100 * accuracy:.1f} %" in line
        else:
            assert "exit code 2: replay.total: is 9" in line
    assert "replay.total" in (paths["bad"] / "train.log").read_text()
    assert snapshots(paths["plain"]) == snapshots(undisturbed)
    assert status_of(paths["cassle"])["state"] == "done"


def test_a_run_is_locked_as_long_as_its_process_lives_whatever_became_of_the_sweep(tmp_path: Path) -> None:
    file = tmp_path / "run/train.log"
    log = lock_log(file)
    assert log is not None
    process = subprocess.Popen(["sleep", "60"], stdout=log)
    log.close()
    assert lock_log(file) is None
    process.kill()
    process.wait()
    again = lock_log(file)
    assert again is not None
    again.close()


def finished(path: Path, config_hash: str) -> None:
    path.mkdir(parents=True)
    (path / "status.json").write_text('{"state": "done"}')
    content = {"config_hash": config_hash, "readers": {"classifier": {"final_accuracy": 0.5}}}
    (path / "results.json").write_text(json.dumps(content))


def test_finished_runs_are_skipped_and_all_done_is_code_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sweep_file(tmp_path, "digits --run.seed {0,1}")
    for found in read_sweep(file):
        finished(tmp_path / "runs" / found.name, found.config.hash())
    assert run(["sweep", str(file), "--run.dir", str(tmp_path / "runs")], COMMANDS) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [f"done     digits-seed{seed}: final accuracy 50.0 %, before" for seed in (0, 1)]
    assert not list((tmp_path / "runs").glob("*/train.log")), "nothing was started"


def test_a_finished_run_of_another_configuration_is_not_taken_for_this_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = sweep_file(tmp_path, "digits")
    path = tmp_path / "runs/digits-seed0"
    finished(path, "another")
    (path / "config.yaml").write_text("optim: {lr: 7}")
    assert run(["sweep", str(file), "--run.dir", str(tmp_path / "runs")], COMMANDS) == 3
    assert "contains a run of another configuration: " in capsys.readouterr().out


def test_runs_at_a_time_share_the_cores_and_what_is_set_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A launcher that records its arguments and ends with code 0, without a result."""
    script = tmp_path / "note.sh"
    script.write_text(f'#!/bin/sh\necho "$KAIZEN_THREADS $@" >> {tmp_path}/said\n')
    script.chmod(0o755)
    arguments = ["sweep", str(sweep_file(tmp_path, "digits")), "--run.dir", str(tmp_path / "runs")]
    monkeypatch.setattr("sys.executable", str(script))
    monkeypatch.setattr("kaizen.parallel.usable_cores", lambda: 6)
    monkeypatch.delenv("KAIZEN_THREADS")
    given: list[list[str]] = [[], ["--jobs", "2"], ["--jobs", "9"], ["--jobs", "2", "--launcher", f"{script} -q"]]
    for more in given:
        assert run([*arguments, *more], COMMANDS) == 3
        assert "failed   digits-seed0: exit code 0: no output" in capsys.readouterr().out
    monkeypatch.setenv("KAIZEN_THREADS", "5")
    assert run([*arguments, "--jobs", "2"], COMMANDS) == 3
    rest = f"-m kaizen.commands.train digits --run.dir {tmp_path}/runs/digits-seed0"
    said = (tmp_path / "said").read_text().splitlines()
    assert said == [f" {rest}", f"3 {rest}", f"1 {rest}", f" -q {rest}", f"5 {rest}"]


@pytest.mark.parametrize(("code", "expected"), [(2, 2), (3, 3), (75, 75), (1, 3)])
def test_one_run_alone_ends_with_its_own_code(
    code: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "end.sh"
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/said\nexit {code}\n')
    script.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(script))
    sweep = ["sweep", str(sweep_file(tmp_path, "digits --run.seed {0,1,2}")), "--run.dir", str(tmp_path / "runs")]
    assert run([*sweep, "--only", "1"], COMMANDS) == expected
    assert (tmp_path / "said").read_text().startswith("-m kaizen.commands.train digits --run.seed 1 ")
    assert len((tmp_path / "said").read_text().splitlines()) == 1, "only this run was started"
    # A launcher returns a different code; the run's code is in its status.
    script.write_text(f"""#!/bin/sh
for last; do :; done
echo '{{"state": "{"stopped" if code == 75 else "failed"}", "exit_code": {code}}}' > "$last/status.json"
exit 1
""")
    assert run([*sweep, "--only", "1", "--launcher", str(script)], COMMANDS) == expected
    script.write_text("#!/bin/sh\nexit 1\n")
    assert run([*sweep, "--only", "1", "--launcher", str(script)], COMMANDS) == 3, "the file is from an earlier start"


@pytest.mark.slow
def test_a_file_named_stop_ends_a_sweep_and_a_launcher_is_stopped_by_a_file_too(tmp_path: Path, cache: str) -> None:
    """The launcher is `env`, which is not a plain process: a signal would kill it before it saves."""
    line = shlex.join(["digits", *TINY, "--data.cache_dir", cache])
    launcher = shlex.join(["env", f"KAIZEN_NOTE={os.getpid()}", sys.executable])
    arguments = ["sweep", str(sweep_file(tmp_path, line)), "--run.dir", str(tmp_path / "runs"), "--launcher", launcher]
    process = start(arguments)
    path = tmp_path / "runs" / read_sweep(tmp_path / "sweep.txt")[0].name
    wait_for_step(path, 3, lambda: process.poll() is None)
    (tmp_path / "runs/stop").touch()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    assert f"stopped  {path.name}: the same command resumes it" in out
    assert "stop" in status_of(path)["reason"]
    assert not (tmp_path / "runs/stop").exists()
