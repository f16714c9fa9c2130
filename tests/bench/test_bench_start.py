"""`python -m kaizen bench --start`: a launch is timed and ended with all its processes; a failed launch is reported."""

import json
import signal
import sys
import time
from pathlib import Path

import pytest
from launches import start, torchrun

from kaizen.bench.start import command_seconds, start_seconds
from kaizen.commands import COMMANDS, run
from kaizen.errors import ConfigError, TrainingFailed
from kaizen.run.log import FIRST_STEP

SMALL = ["--encoder.width", "2", "--method.projector_hidden", "12", "--method.projector_out", "6"]
SMALL += ["--optim.batch", "16", "--classifier.hidden", "[7]", "--eval.readers", "[classifier]"]


def processes_of(path: Path) -> list[str]:
    """Command lines of all processes that contain a path."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(path) in line:
            found.append(line)
    return found


def test_a_file_that_is_no_program_is_told(tmp_path: Path) -> None:
    file = tmp_path / "launch"
    file.write_bytes(b"\x00 no program")
    file.chmod(0o755)
    with pytest.raises(ConfigError, match=r"--start: is .*launch', which cannot be run \(Exec format error\)"):
        start_seconds([str(file)], tmp_path / "run")


def test_a_launch_that_ends_before_its_first_step_is_told_with_the_end_of_what_it_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = "import sys\nfor n in range(50): print('line', n, flush=True)\nsys.exit('no device')"
    with pytest.raises(TrainingFailed, match="without reporting a first step"):
        start_seconds([sys.executable, "-c", program], tmp_path / "run")
    told = capsys.readouterr().err
    assert told.endswith("line 49\nno device\n")
    assert len(told.splitlines()) == 20


LAUNCHER = """
import pathlib, subprocess, sys, time
run = pathlib.Path(sys.argv[-1])
run.mkdir()
here = "import time; time.sleep(100)"
away = "import pathlib, sys, time\\nwhile not pathlib.Path(sys.argv[1], 'stop').exists(): time.sleep(0.02)"
subprocess.Popen([sys.executable, "-c", here, str(run)])
subprocess.Popen([sys.executable, "-c", away, str(run)], start_new_session=True)
print("ready", flush=True)
"""


@pytest.mark.parametrize("comes_to_it", [True, False])
def test_a_launch_is_ended_with_all_its_processes_and_its_run_is_gone(
    comes_to_it: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of its processes is in a separate session, which no signal to the launch reaches."""
    monkeypatch.setattr("kaizen.bench.start.LEAVE_SECONDS", 0.5)
    run, began = tmp_path / "run", time.monotonic()
    told = f"print('0 %| |' + {FIRST_STEP.format(1.5)!r}, flush=True)" if comes_to_it else ""
    command = [sys.executable, "-c", f"{LAUNCHER}\n{told}\ntime.sleep(100)"]
    if comes_to_it:
        seconds, inside = start_seconds(command, run)
        assert inside == 1.5
        assert 0 < seconds < 50
    else:
        monkeypatch.setattr("kaizen.bench.start.MOST_SECONDS", 3.0)
        with pytest.raises(TrainingFailed, match="no first step for 3 s"):
            start_seconds(command, run)
        assert capsys.readouterr().err == "ready\n"
    assert time.monotonic() - began < 20
    assert not run.exists()
    assert not processes_of(run)


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(other, marks=pytest.mark.slow) for other in (signal.SIGINT, signal.SIGHUP))],
)
def test_who_ends_the_bench_ends_what_it_has_launched(number: signal.Signals, tmp_path: Path, cache: str) -> None:
    script = tmp_path / "launch.py"
    script.write_text("import sys, time; open(sys.argv[0] + '.began', 'w').close(); time.sleep(100)")
    command = ["bench", "digits", "--data.cache_dir", cache, "--start", f"{sys.executable} {script}"]
    work = tmp_path / "work"
    work.mkdir()
    # Tests in the background of a shell inherit ignored signals.
    held = signal.signal(number, signal.SIG_DFL)
    process = start([], "-m", "kaizen", *command, TMPDIR=str(work))
    signal.signal(number, held)
    while not script.with_name("launch.py.began").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(20) == 130
    assert not processes_of(tmp_path)
    assert not list(work.iterdir())


@pytest.mark.slow
def test_a_measurement_that_is_ended_leaves_nothing_behind(tmp_path: Path, cache: str) -> None:
    process = start([], "-m", "kaizen", "bench", "digits", *SMALL, "--data.cache_dir", cache, TMPDIR=str(tmp_path))
    while not list(tmp_path.glob("kaizen-bench-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 130
    assert not list(tmp_path.iterdir())


def test_a_command_that_ends_with_another_code_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TrainingFailed, match="code 3, not 2"):
        command_seconds([sys.executable, "-c", "import sys; print('no key', file=sys.stderr); sys.exit(3)"], 2)
    assert capsys.readouterr().err == "no key\n"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_are_timed_to_their_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On random images; launches, images and runs leave nothing behind."""
    monkeypatch.setattr("kaizen.bench.start.FEWEST", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    launcher, file = " ".join([sys.executable, "-m", *torchrun(2)]), tmp_path / "start.json"
    tokens = ["digits", *SMALL, "--synthetic", "--repetitions", "1", "--json", str(file)]
    assert run(["bench", *tokens, "--start", launcher], COMMANDS) == 0
    found, told = json.loads(file.read_text()), capsys.readouterr().out
    for name in ("first_step", "program", "help", "wrong_key"):
        assert found[name]["count"] == 1
        assert found[name]["median"] > 0
    assert found["program"]["median"] < found["first_step"]["median"]
    assert "random images" in found["data"]
    assert all(word in told for word in (launcher, "first step", "--help", "a wrong key"))
    assert not processes_of(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["start.json"]
