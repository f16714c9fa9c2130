"""Faults of a run: a loss that is not finite, refused memory, a changing directory. Nothing saved is lost."""

import json
import os
import pwd
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import log_of, run_of, short, status_of
from safetensors.torch import load_file

from kaizen.commands.train import main
from kaizen.model.learner import TERMS, Learner
from kaizen.training.step import Stepper

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("term", TERMS)
def test_a_term_that_is_not_finite_ends_the_run_and_is_never_saved(
    term: str, tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, arguments = run_of(tiny), short(tiny)
    forward, calls = Learner.forward, 0

    def broken(self: Learner, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        terms, projections = forward(self, *args)
        return ({**terms, term: terms[term] * torch.nan} if calls == 9 else terms), projections

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "forward", broken)
        assert main(arguments) == 3
    assert f"loss/{term} is nan" in capsys.readouterr().err
    status = status_of(run)
    assert (status["state"], status["exit_code"], status["step"]) == ("failed", 3, 9)
    for file in run.rglob("*.safetensors"):
        assert all(torch.isfinite(tensor).all() for tensor in load_file(file).values()), file
    assert main(arguments) == 0, "the same command resumes the run"
    assert [line["step"] for line in log_of(run)] == list(range(1, len(log_of(run)) + 1))


@pytest.mark.slow
def test_memory_that_is_refused_ends_the_run_and_the_same_command_goes_on(tiny: list[str], tmp_path: Path) -> None:
    run, arguments = run_of(tiny), short(tiny)
    script = tmp_path / "refused.py"
    script.write_text(
        "import resource, sys\n"
        "from kaizen.commands.train import main\n"
        "from kaizen.training.step import Stepper\n"
        "step, calls = Stepper.step, 0\n"
        "def refused(self, number):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    if calls == 9:\n"
        "        import torch\n"
        "        held = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "        resource.setrlimit(resource.RLIMIT_AS, (held + 2**26, resource.RLIM_INFINITY))\n"
        "        torch.empty(2**28)\n"
        "    return step(self, number)\n"
        "Stepper.step = refused\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    env = {**os.environ, "KAIZEN_THREADS": "1"}
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3, done.stderr[-2000:]
    errors = [line for line in done.stderr.splitlines() if line.startswith("error") or "Traceback" in line]
    assert len(errors) == 1
    assert errors[0].startswith("error: training failed: not enough memory")
    status = status_of(run)
    assert (status["state"], status["exit_code"]) == ("failed", 3)
    assert main(arguments) == 0
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_who_was_taken_over_writes_nothing_more(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tiny)
    step = Stepper.step

    def taken(self: Stepper, number: int) -> Any:
        if number == 2:
            (run / ".lock").write_text(json.dumps({"token": "theirs"}))
            (run / "status.json").write_text(json.dumps({"state": "theirs"}))
        return step(self, number)

    monkeypatch.setattr(Stepper, "step", taken)
    assert main(short(tiny)) == 3
    assert "was taken over by another process" in capsys.readouterr().err
    assert status_of(run) == {"state": "theirs"}
    assert json.loads((run / ".lock").read_text()) == {"token": "theirs"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "data.cache_dir: is not set, and this user has no home directory; allowed: the path of a directory, as "),
        ({"data.cache_dir": "~/cache"}, "data.cache_dir: is '~/cache', but there is no such home directory; allowed: "),
        (
            {"data.source": "parquet:~nobody.of/x"},
            "data.source: is '~nobody.of/x', but there is no such home directory",
        ),
        ({"run.dir": "~/run"}, "run.dir: is '~/run', but there is no such home directory; allowed: a path without ~"),
    ],
)
def test_a_user_without_a_home_is_asked_for_a_directory(
    given: dict[str, str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def unknown(user: Any) -> None:
        raise KeyError(user)

    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    keys = {"run.dir": str(tmp_path / "run"), **given}
    assert main(["digits", *(token for key, value in keys.items() for token in (f"--{key}", value))]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1


def test_a_checkpoint_under_another_name_is_set_aside(tiny: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run, arguments = run_of(tiny), short(tiny)
    (run / "checkpoints").mkdir(parents=True)
    assert main(arguments) == 0
    kept = max((run / "checkpoints").iterdir())
    shutil.copytree(kept, kept.with_name(kept.name[:-8] + "99999999"))
    shutil.rmtree(run / "tasks" / "task-02")
    capsys.readouterr()
    assert main(arguments) == 0
    assert "step-99999999 is" not in (said := capsys.readouterr().out)
    assert "does not belong to" in said
    assert len(list((run / "checkpoints").glob("*99999999.broken"))) == 1


def test_what_killed_processes_left_is_taken_away(tiny: list[str]) -> None:
    run = run_of(tiny)
    run.mkdir()
    for name in (".status.json.77.tmp", ".results.json.77.tmp", ".results.json.78.tmp"):
        (run / name).touch()
    os.utime(run / ".results.json.77.tmp", (1, 1))
    assert main(short(tiny)) == 0
    assert [path.name for path in run.glob(".*")] == [".results.json.78.tmp"], "an evaluation may be writing it"
