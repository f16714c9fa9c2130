"""`python -m kaizen bench --start`: a launch is timed and ended with all its processes; one that fails is told."""

import json
import sys
from pathlib import Path

import pytest
from launches import torchrun

from kaizen.bench.start import command_seconds, start_seconds
from kaizen.commands import COMMANDS, run
from kaizen.errors import TrainingFailed

SMALL = ["--encoder.width", "2", "--method.projector_hidden", "12", "--method.projector_out", "6"]
SMALL += ["--optim.batch", "16", "--classifier.hidden", "[7]", "--eval.readers", "[classifier]"]


def processes_of(path: Path) -> list[str]:
    """Command lines of all processes that name a path."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(path) in line:
            found.append(line)
    return found


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["--start", "nosuch launch"], ("--start", "nosuch", "accelerate launch")),
        (["--start", ""], ("--start", "empty", "accelerate launch")),
        (["--start", "python", "--tasks", "3"], ("--start", "--tasks")),
        (["--start", "python", "--against", "pil"], ("--against", "--start")),
        (["--start", "python", "--checkpoints"], ("--checkpoints", "--start")),
        (["--start", "python", "--optim.lr", "fast"], ("optim.lr", "'fast'")),
    ],
)
def test_mistakes_end_with_code_2_and_one_line(
    tokens: list[str], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "digits", *tokens], COMMANDS) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert all(word in error for word in words)


def test_under_a_launcher_it_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert run(["bench", "digits", "--start", "python"], COMMANDS) == 2
    assert "without a launcher" in capsys.readouterr().err


def test_a_launch_that_ends_before_its_first_step_is_told_with_what_it_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = "import sys; print('line', *range(2)); sys.exit('no device')"
    with pytest.raises(TrainingFailed, match="code 1 before its first step"):
        start_seconds([sys.executable, "-c", program], tmp_path / "run")
    assert "line 0 1\nno device" in capsys.readouterr().err


def test_a_launch_is_ended_at_its_first_step_and_its_run_is_gone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    program = "import pathlib, sys, time; pathlib.Path(sys.argv[-1]).mkdir()\n"
    program += "print('0 %| |first step          1.5 s after the program began', flush=True); time.sleep(100)"
    seconds, inside = start_seconds([sys.executable, "-c", program], run)
    assert inside == 1.5
    assert 0 < seconds < 100
    assert not run.exists()
    assert not processes_of(run)


def test_a_command_that_ends_with_another_code_is_told() -> None:
    with pytest.raises(TrainingFailed, match=r"code 3, not 2: no key"):
        command_seconds([sys.executable, "-c", "import sys; print('no key', file=sys.stderr); sys.exit(3)"], 2)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_are_timed_to_their_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On random images; afterwards nothing is left of the launches, the images or the runs."""
    monkeypatch.setattr("kaizen.bench.start.FEWEST", 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
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
