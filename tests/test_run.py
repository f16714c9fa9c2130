"""Whole runs on bundled digits: the files they leave, what is logged, how they stop, fail and go on."""

import json
import math
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import TINY, Launcher
from safetensors.torch import load_file

from kaizen.cli import parse_arguments, resolve
from kaizen.commands.train import main
from kaizen.data.load import load_stream
from kaizen.errors import TrainingFailed
from kaizen.evaluation.evaluator import Evaluator
from kaizen.evaluation.metrics import summarize
from kaizen.learner import Learner, Network
from kaizen.parallel import Parallel
from kaizen.state import TaskState
from kaizen.teacher import read_network

TASKS, STEPS = 5, 6


def run_of(tiny: list[str]) -> Path:
    return Path(tiny[tiny.index("--run.dir") + 1])


def log_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def status_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "status.json").read_text())


def snapshots(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.glob("tasks/*/*.safetensors"))}


@pytest.fixture(scope="module")
def undisturbed(launcher: Launcher, cache: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    assert launcher.run(["digits", *TINY, "--data.cache_dir", cache, "--run.dir", str(run)]) == 0
    return run


def test_a_run_leaves_the_files_of_the_contract(undisturbed: Path) -> None:
    for name in ("config.yaml", "environment.json", "status.json", "log.jsonl", "results.json"):
        assert (undisturbed / name).is_file()
    assert status_of(undisturbed) == {"state": "done", "exit_code": 0, "task": 4, "step": TASKS * STEPS, "reason": None}
    for task in range(TASKS):
        student = load_file(undisturbed / f"tasks/task-{task:02d}/student.safetensors")
        parts = {"encoder", "projector", "classifier"} | ({"distill_predictor"} if task else set())
        assert {name.split(".")[0] for name in student} == parts
        memory = load_file(undisturbed / f"tasks/task-{task:02d}/replay.safetensors")
        assert memory["images"].shape == (8 * (task + 1), 3, 8, 8)
        assert memory["images"].dtype == torch.uint8
        assert memory["task_ids"].unique().tolist() == list(range(task + 1))
    picture = ElementTree.fromstring((undisturbed / "results.svg").read_text())
    assert "forgetting" in "".join(picture.itertext())
    state = json.loads((undisturbed / "checkpoints/task-04_step-00000028/state.json").read_text())
    assert (state["task"], state["step"]) == (4, 28)
    assert len(state["config_hash"]) == 16
    assert {"kaizen", "torch"} <= set(state["versions"])
    names = sorted(p.name for p in (undisturbed / "checkpoints").iterdir())
    assert names == ["task-04_step-00000026", "task-04_step-00000028"], "keep_checkpoints newest"
    assert not [p for p in undisturbed.rglob("*") if p.suffix in (".pt", ".pkl", ".bin", ".tmp")]


def test_results_hold_the_matrix_and_its_metrics(undisturbed: Path) -> None:
    results = json.loads((undisturbed / "results.json").read_text())
    reader = results["readers"]["classifier"]
    assert len(reader["untrained"]) == TASKS
    assert [len(row) for row in reader["matrix"]] == [TASKS] * TASKS
    for name, value in summarize(reader["matrix"], reader["untrained"]).items():
        assert reader[name] == value
        assert value is not None
    assert [task["classes"] for task in results["stream"]["tasks"]] == [[1, 4], [9, 6], [3, 5], [0, 2], [8, 7]]
    assert len(results["seconds"]["train"]) == len(results["images_per_second"]) == TASKS
    assert results["peak_memory_bytes"] > 0


def test_log_has_all_four_terms_at_every_step(undisturbed: Path) -> None:
    lines = log_of(undisturbed)
    assert [line["step"] for line in lines] == list(range(1, TASKS * STEPS + 1))
    for line in lines:
        terms = [line[f"loss/{name}"] for name in ("ssl", "distill", "classifier", "classifier_distill")]
        assert all(math.isfinite(value) for value in terms)
        weighted = terms[0] + terms[1] + terms[2] + 2 * terms[3]
        assert line["loss/total"] == pytest.approx(weighted, rel=1e-5)
        assert (terms[1] > 0) == (terms[3] > 0) == (line["task"] > 0)
        assert line["epoch"] == (line["step"] - 1) % STEPS // 3


SWITCHES = {
    "ssl": ["--method.weight", "0"],
    "distill": ["--distill.name", "none"],
    "classifier": ["--classifier.weight", "0"],
    "classifier_distill": ["--classifier.distill_weight", "0"],
}


@pytest.mark.parametrize("term", SWITCHES)
def test_each_term_can_be_switched_off_alone(term: str, tiny: list[str]) -> None:
    weights = {"ssl": 1.5, "distill": 0.6, "classifier": 1.2, "classifier_distill": 0.7}
    given = ["--method.weight", "1.5", "--distill.weight", "0.6", "--classifier.weight", "1.2"]
    given += ["--classifier.distill_weight", "0.7", "--stream.tasks", "2", "--run.checkpoint_every", "0"]
    assert main([*tiny, *given, *SWITCHES[term]]) == 0
    lines = [line for line in log_of(run_of(tiny)) if line["task"] == 1]
    for line in lines:
        others = sum(weight * line[f"loss/{name}"] for name, weight in weights.items() if name != term)
        assert line["loss/total"] == pytest.approx(others, rel=1e-5)
        assert all(line[f"loss/{name}"] > 0 for name in weights if name != term)
    student = load_file(run_of(tiny) / "tasks/task-01/student.safetensors")
    has_predictor = any(name.startswith("distill_predictor") for name in student)
    assert has_predictor == (term != "distill")


def test_class_ratio_weighs_the_old_classifier_by_classes_before_over_new(tiny: list[str]) -> None:
    ratio = ["--classifier.distill_weight", "class_ratio", "--stream.tasks", "3", "--run.checkpoint_every", "0"]
    assert main([*tiny, *ratio, "--optim.epochs", "1", "--optim.warmup_epochs", "0"]) == 0
    # Ten classes in cuts of 4, 3 and 3.
    ratios = {0: 0.0, 1: 4 / 3, 2: 7 / 3}
    for line in log_of(run_of(tiny)):
        first = line["loss/ssl"] + line["loss/distill"] + line["loss/classifier"]
        expected = first + ratios[line["task"]] * line["loss/classifier_distill"]
        assert line["loss/total"] == pytest.approx(expected, rel=1e-5)


def test_the_last_step_of_a_task_is_always_logged(tiny: list[str]) -> None:
    assert main([*tiny, "--stream.tasks", "2", "--log.every_steps", "1000"]) == 0
    assert [line["task"] for line in log_of(run_of(tiny))] == [0, 1]


def test_the_matrix_is_what_each_snapshot_says_of_each_test_image(undisturbed: Path, cache: str) -> None:
    results = json.loads((undisturbed / "results.json").read_text())
    stream = load_stream(resolve("digits", {"data.cache_dir": cache})[1])
    config = resolve(*parse_arguments(["digits", *TINY]))[1]
    mean, std = stream.moments
    for task in (0, 4):
        network = read_network(undisturbed / f"tasks/task-{task:02d}/student.safetensors", config, 10).eval()
        for index, part in enumerate(stream.tasks):
            images = torch.from_numpy(stream.source.test.images[part.test]) / 255
            images = (images - mean[:, None, None]) / std[:, None, None]
            with torch.no_grad():
                guesses = [int(network.classifier(network.encoder(x[None])).argmax()) for x in images]
            right = [
                guess == int(label) for guess, label in zip(guesses, stream.source.test.labels[part.test], strict=True)
            ]
            found = results["readers"]["classifier"]["matrix"][task][index]
            assert found == pytest.approx(sum(right) / len(right), abs=1.5 / len(right)), "but for a tie"


def test_evaluation_changes_nothing_in_a_network(cache: str) -> None:
    config = resolve("digits", {"data.cache_dir": cache, "encoder.width": "4"})[1]
    network = Network(config, 10).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    Evaluator(load_stream(config), ("classifier",), Parallel()).row(network, lambda: None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_a_step_that_a_scaler_skipped_advances_neither_twin_nor_queues(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "optimizer_step_was_skipped", property(lambda self: True))
    moco = ["--method.name", "mocov2plus", "--method.queue_size", "150", "--stream.tasks", "1"]
    assert main([*tiny, *moco, "--optim.epochs", "1", "--optim.warmup_epochs", "0"]) == 0
    method = load_file(run_of(tiny) / "tasks/task-00/method.safetensors")
    student = load_file(run_of(tiny) / "tasks/task-00/student.safetensors")
    fresh = Learner(resolve(*parse_arguments([*tiny, *moco]))[1], 10, None).state_dict()
    assert int(method["method.queue1.next"]) == 0
    assert torch.equal(method["twin.encoder.conv1.weight"], fresh["encoder.conv1.weight"])
    assert not torch.equal(student["encoder.conv1.weight"], fresh["encoder.conv1.weight"])


def test_joint_is_one_task_without_forgetting(tiny: list[str]) -> None:
    assert main([*tiny, "--stream.kind", "joint", "--optim.epochs", "2"]) == 0
    results = json.loads((run_of(tiny) / "results.json").read_text())
    reader = results["readers"]["classifier"]
    assert len(reader["matrix"]) == 1
    assert reader["forgetting"] is None
    assert reader["final_accuracy"] == reader["matrix"][0][0]
    assert results["stream"]["tasks"][0]["classes"] == list(range(10))


def wait_for_step(run: Path, step: int, process: Any) -> None:
    """Until the run has logged that step, or has ended."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.is_alive():
        if (run / "log.jsonl").exists() and f'"step": {step},' in (run / "log.jsonl").read_text():
            return
        time.sleep(0.002)


def test_a_run_killed_five_times_ends_byte_for_byte_as_one_that_was_not(
    tiny: list[str], launcher: Launcher, undisturbed: Path
) -> None:
    run = run_of(tiny)
    for step in (3, 8, 15, 19, 26):
        process = launcher.start(tiny)
        wait_for_step(run, step, process)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert launcher.run(tiny) == 0
    assert snapshots(run) == snapshots(undisturbed)
    mine, theirs = (
        [{k: v for k, v in line.items() if "second" not in k} for line in log_of(r)] for r in (run, undisturbed)
    )
    assert mine == theirs, "the log reads as if nothing had happened"
    readers = [json.loads((r / "results.json").read_text())["readers"] for r in (run, undisturbed)]
    assert readers[0] == readers[1]


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "file"])
def test_asked_to_stop_it_saves_and_goes_on(how: str, tiny: list[str], launcher: Launcher, undisturbed: Path) -> None:
    run = run_of(tiny)
    process = launcher.start(tiny)
    wait_for_step(run, 8, process)
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


def test_the_momentum_twin_and_the_queues_come_back_too(tiny: list[str], launcher: Launcher, tmp_path: Path) -> None:
    moco = ["--method.name", "mocov2plus", "--method.queue_size", "150", "--method.projector_hidden", "32"]
    whole, cut = [*tiny, *moco, "--run.dir", str(tmp_path / "a")], [*tiny, *moco, "--run.dir", str(tmp_path / "b")]
    assert launcher.run(whole) == 0
    process = launcher.start(cut)
    wait_for_step(tmp_path / "b", 9, process)
    process.kill()
    process.join()
    assert launcher.run(cut) == 0
    assert snapshots(tmp_path / "a") == snapshots(tmp_path / "b")
    method = load_file(tmp_path / "a/tasks/task-04/method.safetensors")
    assert {name.split(".")[0] for name in method} == {"method", "twin"}
    assert int(method["method.queue1.next"]) != 0


def test_a_loss_that_is_not_finite_ends_with_code_3_and_keeps_the_last_checkpoint(
    tiny: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*tiny, "--optim.name", "sgd", "--optim.lr", "1e30", "--optim.warmup_epochs", "0"]) == 3
    error = capfd.readouterr().err
    assert "training failed: task 0, step " in error
    assert "loss/ssl is nan" in error or "loss/ssl is inf" in error
    status = status_of(run_of(tiny))
    assert (status["state"], status["exit_code"], status["task"]) == ("failed", 3, 0)
    assert not (run_of(tiny) / "tasks").exists()


def test_weights_that_a_step_has_broken_are_not_saved(tiny: list[str], tmp_path: Path) -> None:
    config = resolve(*parse_arguments(tiny))[1]
    state = TaskState(config, 10, 0, 0.1, {"classifier_distill": 0.0}, tmp_path, Parallel())
    with torch.no_grad():
        state.learner.encoder.conv1.weight[0] = math.inf
    position = {"task": 0, "step": 7}
    said = r"task 0, step 7: encoder.conv1.weight \(student\) is not finite"
    with pytest.raises(TrainingFailed, match=said):
        state.save_checkpoint(tmp_path / "checkpoint", position)
    with pytest.raises(TrainingFailed, match=said):
        state.save_task_end(tmp_path / "task", state.memory(np.zeros((1, 3, 8, 8), dtype=np.uint8)), position)
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


def test_a_finished_run_shows_its_table_again(
    tiny: list[str], undisturbed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*tiny, "--run.dir", str(undisturbed), "--run.resume", "must"]) == 0
    out = capfd.readouterr().out
    assert "final accuracy" in out
    assert "learning rate" in out


def test_wandb_writes_offline(tiny: list[str], launcher: Launcher) -> None:
    assert launcher.run([*tiny, "--stream.tasks", "1", "--log.wandb", "offline"]) == 0
    assert list((run_of(tiny) / "wandb").glob("offline-run-*"))
