"""Runs that are killed, stopped, damaged or restarted: they resume exactly, or report why they cannot."""

import json
import math
import os
import random
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from conftest import Launcher
from runs import STEPS, TASKS, log_of, run_of, snapshots, status_of, wait_for_step
from safetensors.torch import load_file

from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.commands.train import main
from kaizen.errors import TrainingFailed
from kaizen.model.methods import REGISTRY, method_class
from kaizen.parallel import Parallel
from kaizen.run.measures import MEASURES
from kaizen.training.state import TaskState


def kill_after(launcher: Launcher, arguments: list[str], run: Path, *steps: int) -> None:
    """Start a run again and again, and kill it once it has logged each of these steps."""
    for step in steps:
        process = launcher.start(arguments)
        wait_for_step(run, step, process.is_alive)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL


def test_a_run_killed_five_times_ends_byte_for_byte_as_one_that_was_not(
    tiny: list[str], launcher: Launcher, undisturbed: Path
) -> None:
    run = run_of(tiny)
    kill_after(launcher, tiny, run, 3, 8, 15, 19, 26)
    assert launcher.run(tiny) == 0
    assert snapshots(run) == snapshots(undisturbed)
    mine, theirs = (
        [{k: v for k, v in line.items() if "second" not in k} for line in log_of(r)] for r in (run, undisturbed)
    )
    assert mine == theirs, "the log reads as if nothing had happened"
    seconds = [line["seconds"] for line in log_of(run)]
    assert seconds == sorted(seconds), "they count over all starts"
    starts = json.loads((run / "environment.json").read_text())["starts"]
    assert [start["step"] for start in starts] == sorted(start["step"] for start in starts)
    assert len(starts) == 6
    results = [json.loads((r / "results.json").read_text()) for r in (run, undisturbed)]
    for name in ("readers", "rankme", *MEASURES):
        assert results[0][name] == results[1][name], name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_thirty_times_at_any_moment_ends_byte_for_byte_as_one_that_was_not(
    tiny: list[str], launcher: Launcher, undisturbed: Path
) -> None:
    run, moments = run_of(tiny), random.Random(7)
    kills = steps = 0
    while kills < 30:
        process = launcher.start(tiny)
        # From the start-up until after several checkpoints; an undisturbed start takes seconds.
        process.join(moments.uniform(0.05, 2.5))
        if process.exitcode is not None:
            assert process.exitcode == 0
            shutil.rmtree(run)  # it finished between two kills: start from the beginning
            continue
        process.kill()
        process.join()
        kills += 1
        steps = max(steps, len(log_of_killed(run)))
    assert steps > 5, "kills hit a run at work"
    assert launcher.run(tiny) == 0
    assert snapshots(run) == snapshots(undisturbed)
    assert [line["step"] for line in log_of(run)] == list(range(1, TASKS * STEPS + 1))
    leftovers = [path for path in run.rglob(".*") if not path.name.startswith(".lock")]
    assert not leftovers, "remains of kills are deleted"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_asked_twice_to_stop_fifteen_times_at_any_moment_saves_within_seconds_and_loses_nothing(
    tiny: list[str], launcher: Launcher, undisturbed: Path
) -> None:
    run, moments = run_of(tiny), random.Random(11)
    tiny = [*tiny, "--eval.readers", "[classifier,linear_probe_seen,linear_probe_all,knn]"]
    stops, slowest, found = 0, 0.0, set()
    while stops < 15:
        process = launcher.start(tiny)
        if stops % 3 == 0:  # anywhere from the start-up on
            process.join(moments.uniform(0.3, 2))
        else:  # at work
            wait_for_step(run, len(log_of_killed(run)) + 1, process.is_alive)
            process.join(moments.uniform(0, 0.5))
        if process.exitcode is not None:
            assert process.exitcode == 0
            shutil.rmtree(run)
            continue
        began = time.monotonic()
        assert process.pid
        for number in moments.choices((signal.SIGTERM, signal.SIGINT), k=2):
            with suppress(ProcessLookupError):  # the first stop may have ended it
                os.kill(process.pid, number)
            process.join(moments.uniform(0, 0.2))
        process.join(20)
        slowest = max(slowest, time.monotonic() - began)
        assert process.exitcode in (75, 0), "at the very end it is done"
        if process.exitcode == 75 and (run / "status.json").exists():
            status = status_of(run)
            assert (status["state"], status["exit_code"]) == ("stopped", 75)
            found.add((status["task"], status["step"]))
        stops += process.exitcode == 75
    print(f"stopped {stops} times at {sorted(found)}, within {slowest:.1f} s")
    assert len(found) > 5, "it was at work when it was asked"
    assert launcher.run(tiny) == 0
    assert snapshots(run) == snapshots(undisturbed)
    assert [line["step"] for line in log_of(run)] == list(range(1, TASKS * STEPS + 1))


def log_of_killed(run: Path) -> list[str]:
    log = run / "log.jsonl"
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("how", ["SIGTERM", pytest.param("SIGINT", marks=pytest.mark.slow), "file"])
def test_asked_to_stop_it_saves_and_goes_on(how: str, tiny: list[str], launcher: Launcher, undisturbed: Path) -> None:
    run = run_of(tiny)
    process = launcher.start(tiny)
    wait_for_step(run, 8, process.is_alive)
    if how == "file":
        (run / "stop").touch()
    else:
        assert process.pid
        os.kill(process.pid, getattr(signal, how))
    process.join(60)
    assert process.exitcode == 75
    status = status_of(run)
    assert (status["state"], status["exit_code"]) == ("stopped", 75)
    assert "stop" in status["reason"] if how == "file" else status["reason"] == how
    assert not (run / "stop").exists()
    assert launcher.run(tiny) == 0
    assert snapshots(run) == snapshots(undisturbed)


# A momentum twin with queues; the rest is slow.
@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=() if name == "mocov2plus" else pytest.mark.slow)
        for name in REGISTRY
        if name != "simclr"
    ]
    + [pytest.param("mocov2plus, pnr", marks=pytest.mark.slow)],
)
def test_every_methods_own_state_comes_back_byte_for_byte(
    method: str, tiny: list[str], launcher: Launcher, tmp_path: Path
) -> None:
    more = {"swav": ["--method.queue_size", "150", "--method.queue_epoch", "1"], "wmse": ["--optim.lr", "0.2"]}
    method, _, distiller = method.partition(", ")
    short = ["--stream.tasks", "2", "--optim.batch", "120", "--distill.name", distiller or "auto"]
    start = [f"digits-{method}", *tiny[1:], *more.get(method, []), *short]
    whole, cut = [*start, "--run.dir", str(tmp_path / "a")], [*start, "--run.dir", str(tmp_path / "b")]
    assert launcher.run(whole) == 0
    kill_after(launcher, cut, tmp_path / "b", 13)  # in the second task
    assert launcher.run(cut) == 0
    assert snapshots(tmp_path / "a") == snapshots(tmp_path / "b")
    lines = [log_of(tmp_path / name) for name in ("a", "b")]
    assert [line["loss/total"] for line in lines[0]] == [line["loss/total"] for line in lines[1]]
    held = load_file(tmp_path / "a/tasks/task-01/method.safetensors")
    gone = tuple(f"method.{name}" for name in method_class(method).of_one_task)
    assert not [name for name in held if gone and name.startswith(gone)]
    assert any(name.startswith("twin.") for name in held) == bool(method_class(method).twin_views)


@pytest.mark.slow
def test_a_memory_chosen_by_features_comes_back_too(tiny: list[str], launcher: Launcher, tmp_path: Path) -> None:
    herding = ["--replay.policy", "herding", "--labels.fraction", "0.5", "--stream.tasks", "3"]
    whole, cut = ([*tiny, *herding, "--run.dir", str(tmp_path / name)] for name in "ab")
    assert launcher.run(whole) == 0
    kill_after(launcher, cut, tmp_path / "b", 5, 9)
    assert launcher.run(cut) == 0
    assert snapshots(tmp_path / "a") == snapshots(tmp_path / "b")


def test_weights_that_a_step_has_broken_are_not_saved(tiny: list[str], tmp_path: Path) -> None:
    config = resolve(*parse_arguments(tiny))[1]
    state = TaskState(config, 10, 0, 288, 0.1, {"classifier_distill": 0.0}, tmp_path, Parallel())
    with torch.no_grad():
        state.learner.encoder.conv1.weight[0] = math.inf
    position = {"task": 0, "step": 7}
    said = r"task 0, step 7: encoder.conv1.weight \(student\) is not finite"
    with pytest.raises(TrainingFailed, match=said):
        state.checkpoint(tmp_path / "checkpoint", position)()
    with pytest.raises(TrainingFailed, match=said):
        state.save_task_end(tmp_path / "task", lambda student: {}, (3, 8, 8), lambda: position)
    assert not list(tmp_path.glob("*")), "nothing is written"


def test_a_task_whose_end_state_is_gone_is_trained_and_evaluated_again(
    tiny: list[str], launcher: Launcher, undisturbed: Path
) -> None:
    run = run_of(tiny)
    shutil.copytree(undisturbed, run)
    for folder in ("tasks/task-03", "tasks/task-04", "checkpoints"):
        shutil.rmtree(run / folder)
    assert launcher.run(tiny) == 0
    assert snapshots(run) == snapshots(undisturbed)
    mine, theirs = (json.loads((r / "results.json").read_text()) for r in (run, undisturbed))
    assert mine["readers"] == theirs["readers"]
    assert len(mine["seconds"]["train"]) == TASKS


def test_another_configuration_in_the_same_directory_is_refused_by_key(
    tiny: list[str], undisturbed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = snapshots(undisturbed), status_of(undisturbed)
    there = [*tiny, "--run.dir", str(undisturbed)]
    assert main([*there, "--optim.lr", "0.5"]) == 2
    assert "optim.lr was 1.0 and is now 0.5" in capfd.readouterr().err
    assert main([*there, "--run.resume", "never"]) == 2
    assert "run.resume" in capfd.readouterr().err
    assert (snapshots(undisturbed), status_of(undisturbed)) == before
    assert main([*there, "--log.every_steps", "3", "--run.checkpoint_every", "7"]) == 0, "free keys may change"


def test_state_of_another_configuration_is_refused_without_its_config_file_too(
    tiny: list[str], undisturbed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tiny)
    shutil.copytree(undisturbed, run)
    (run / "config.yaml").unlink()
    assert main([*tiny, "--optim.lr", "0.5"]) == 2
    assert "was saved by a run of another configuration" in capfd.readouterr().err
    (run / "config.yaml").unlink()
    assert main([*tiny, "--run.resume", "never"]) == 2


def test_a_start_that_is_refused_is_told_by_the_status_and_keeps_the_position(
    tiny: list[str], undisturbed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tiny)
    shutil.copytree(undisturbed, run)
    assert main([*tiny, "--data.cache_dir", "/proc/nowhere"]) == 2
    status = status_of(run)
    assert (status["state"], status["exit_code"], status["task"], status["step"]) == ("failed", 2, 4, TASKS * STEPS)
    assert "data.cache_dir" in status["reason"]
    weights = run / "tasks/task-02/student.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert main(tiny) == 2
    assert f"delete {run / 'tasks/task-02'} to train this task again" in capfd.readouterr().err
    assert status_of(run)["step"] == TASKS * STEPS


@pytest.mark.parametrize(
    ("file", "content", "code"),
    [
        ("config.yaml", b"\xff", 2),
        ("results.json", b"[1]", 2),
        ("results.json", b'{"readers": {"classifier": {}}}', 2),
        ("log.jsonl", b"5\n\xff\n", 0),
        ("environment.json", b"[1, 2]", 0),
        ("status.json", b"", 0),
    ],
)
def test_small_files_that_are_damaged_are_named_or_written_again(
    file: str, content: bytes, code: int, tiny: list[str], undisturbed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(undisturbed, run_of(tiny))
    (run_of(tiny) / file).write_bytes(content)
    assert main(tiny) == code
    error = capfd.readouterr().err
    assert error.count("\n") == (1 if code else 0)
    assert not code or f"error: {run_of(tiny) / file}: " in error
