"""The command line of the bench: what is refused, and what --help shows."""

import sys

import pytest

from kaizen.commands import COMMANDS, run


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["--against", "dali"], ("--against", "'pil', 'kornia'")),
        (["--repetitions", "0"], ("--repetitions", "at least 1")),
        (["--tasks", "2"], ("--tasks", "at least 3")),
        (["--tasks", "3", "--stream.kind", "joint"], ("joint", "allowed")),
        (["--tasks", "3", "--against", "pil"], ("--against", "--tasks")),
        (["--tasks", "3", "--checkpoints"], ("--checkpoints", "--tasks")),
        (["--tasks", "11"], ("stream.tasks", "1 to 10")),
        (["--start", "nosuch launch"], ("--start", "nosuch", "accelerate launch")),
        (["--start", "accelerate 'launch"], ("--start", "quotation")),
        (["--start", "", "--tasks", "3"], ("--start", "--tasks")),
        (["--start", sys.executable, "--against", "pil"], ("--against", "--start")),
        (["--start", sys.executable, "--checkpoints"], ("--checkpoints", "--start")),
        (["--start", sys.executable, "--optim.lr", "fast"], ("optim.lr", "'fast'")),
        (["--json", "/nowhere/bench.json"], ("--json", "directory")),
        (["--optim.lr", "fast"], ("optim.lr", "'fast'")),
        (["--whole", "1"], ("--whole", "at least 2")),
        (["--whole", "2", "--profile"], ("--profile", "--whole")),
        (["--graph", "on"], ("--graph", "'auto', 'off'")),
        (["--run.graph", "must"], ("run.graph", "the device is a CPU")),
        (["--jsn", "x"], ("--jsn", "section.key")),
        (["--data.source", "parquet:/nowhere"], ("data.source", "/nowhere is not a directory")),
    ],
)
def test_mistakes_end_with_code_2_and_one_line(
    tokens: list[str], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", "digits", *tokens], COMMANDS) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert all(word in error for word in words)


def test_start_is_refused_under_a_launcher(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert run(["bench", "digits", "--start", sys.executable], COMMANDS) == 2
    assert "without a launcher" in capsys.readouterr().err


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "--help"], COMMANDS) == 0
    out = capsys.readouterr().out
    assert out.count("\n  python -m kaizen bench") >= 2
    for option in ("--json", "--against", "--tasks", "--start", "--synthetic", "--checkpoints", "--profile", "--whole"):
        assert option in out
