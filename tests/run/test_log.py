"""What a start prints of earlier ones, and the log's tracker: one run at Weights & Biases, whose errors end nothing."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kaizen.cli.resolve import resolve
from kaizen.parallel import Parallel
from kaizen.run.log import RunLog


def test_every_start_gives_wandb_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parallel, config, given = Parallel(), resolve("digits", {"log.wandb": "offline"})[1], []

    def started(project: str, config: Any, init_kwargs: dict[str, Any]) -> None:
        given.append(init_kwargs["wandb"])

    monkeypatch.setattr(parallel.accelerator, "init_trackers", started)
    for place in ("a", "a", "b"):
        (tmp_path / place).mkdir(exist_ok=True)
        RunLog(tmp_path / place, config, parallel, steps=1, done=0).close()
    assert [options["resume"] for options in given] == ["allow"] * 3
    ids = [options["id"] for options in given]
    assert ids[0] == ids[1] != ids[2]


def test_a_tracker_that_fails_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parallel, config, calls = Parallel(), resolve("digits", {"log.wandb": "offline"})[1], 0

    def refused(*_: Any, **__: Any) -> None:
        nonlocal calls
        calls += 1
        raise RuntimeError("wandb-core exited")

    monkeypatch.setattr(parallel.accelerator, "init_trackers", lambda *_, **__: None)
    monkeypatch.setattr(parallel.accelerator, "log", refused)
    monkeypatch.setattr(parallel.accelerator, "trackers", [SimpleNamespace(finish=refused)])
    log = RunLog(tmp_path, config, parallel, steps=2, done=0)
    log.line({"step": 1})
    log.line({"step": 2})
    log.close()
    assert calls == 1
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    assert "note: wandb failed and is left out from here on (wandb-core exited)" in capsys.readouterr().err


@pytest.mark.parametrize(("done", "told"), [(0, ""), (3, "resumed             after step 3 of 8\n"), (8, "")])
def test_a_start_says_from_where_it_goes_on(
    done: int, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunLog(tmp_path, resolve("digits", {})[1], Parallel(), steps=8, done=done).close()
    assert capsys.readouterr().out == told
