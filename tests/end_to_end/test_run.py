"""Whole runs on bundled digits: their files, logs, measurements and failures."""

import io
import json
import math
from datetime import datetime
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from accelerate import Accelerator
from conftest import TINY, Launcher
from runs import STEPS, TASKS, log_of, run_of, status_of
from safetensors.torch import load_file

from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.cli.shipped import shipped_recipes
from kaizen.commands.train import main
from kaizen.config.schema import READERS
from kaizen.data.load import load_stream
from kaizen.evaluation.evaluator import Evaluator
from kaizen.evaluation.metrics import summarize
from kaizen.model.learner import Learner, Network
from kaizen.model.statistics import statistics_bytes
from kaizen.model.teacher import read_network
from kaizen.parallel import Parallel
from kaizen.run.measures import MEASURES


def test_a_run_leaves_all_its_files(undisturbed: Path) -> None:
    for name in ("config.yaml", "environment.json", "status.json", "log.jsonl", "results.json"):
        assert (undisturbed / name).is_file()
    status = status_of(undisturbed)
    assert datetime.fromisoformat(status.pop("updated")) <= datetime.now().astimezone()
    ended = {"state": "done", "exit_code": 0, "task": 4, "step": TASKS * STEPS, "seconds_left": 0, "reason": None}
    assert status == ended
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
        assert (value is None) == (name == "forward_transfer")
    assert [task["classes"] for task in results["stream"]["tasks"]] == [[1, 4], [9, 6], [3, 5], [0, 2], [8, 7]]
    assert len(results["seconds"]["train"]) == len(results["images_per_second"]) == TASKS
    assert results["peak_memory_bytes"] > 0
    assert results["class_names"] == [str(digit) for digit in range(10)]
    assert [task["name"] for task in results["stream"]["tasks"]] == ["1, 4", "9, 6", "3, 5", "0, 2", "8, 7"]
    assert [[value is None for value in row] for row in reader["matrix"]] == [
        [task > row for task in range(TASKS)] for row in range(TASKS)
    ]
    assert results["memory_bytes"] == {
        "images": [8 * 3 * 8 * 8 * (task + 1) for task in range(TASKS)],
        "statistics": [statistics_bytes(2 * (task + 1), 32) for task in range(TASKS)],
    }
    assert len(results["rankme"]) == TASKS
    assert all(1 <= rank <= 32 for rank in results["rankme"])
    for name in MEASURES:
        lines = [[line[name] for line in log_of(undisturbed) if line["task"] == task] for task in range(TASKS)]
        assert results[name] == [sum(values) / STEPS for values in lines]
        assert all(value > 0 for value in results[name])


def test_log_has_all_four_terms_at_every_step(undisturbed: Path) -> None:
    lines = log_of(undisturbed)
    assert [line["step"] for line in lines] == list(range(1, TASKS * STEPS + 1))
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    trained = json.loads((undisturbed / "results.json").read_text())["seconds"]["train"]
    assert sum(trained[:-1]) < seconds[-1] <= sum(trained), "over the whole run, not one task"
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
    # Ten classes in tasks of 4, 3 and 3.
    ratios = {0: 0.0, 1: 4 / 3, 2: 7 / 3}
    for line in log_of(run_of(tiny)):
        first = line["loss/ssl"] + line["loss/distill"] + line["loss/classifier"]
        expected = first + ratios[line["task"]] * line["loss/classifier_distill"]
        assert line["loss/total"] == pytest.approx(expected, rel=1e-5)


def test_swav_trains_with_small_crops(tiny: list[str], tmp_path: Path) -> None:
    small = "{size: 5, crop_scale: [0.2, 0.5], jitter_p: 0, gray_p: 0}"
    recipe = shipped_recipes()["digits-swav"] + f"  - {small}\n  - {small}\n"
    (tmp_path / "crops.yaml").write_text(recipe)
    assert main([str(tmp_path / "crops.yaml"), *tiny[1:], "--stream.tasks", "2"]) == 0
    lines = log_of(run_of(tiny))
    assert all(line["loss/ssl"] > 0 for line in lines)
    assert all(line["loss/distill"] > 0 for line in lines if line["task"] == 1)


def test_the_last_step_of_a_task_is_always_logged(tiny: list[str]) -> None:
    assert main([*tiny, "--stream.tasks", "2", "--log.every_steps", "1000"]) == 0
    assert [line["task"] for line in log_of(run_of(tiny))] == [0, 1]


def test_the_matrix_is_what_each_snapshot_says_of_each_test_image(undisturbed: Path, cache: str) -> None:
    results = json.loads((undisturbed / "results.json").read_text())
    stream = load_stream(resolve("digits", {"data.cache_dir": cache})[1])
    config = resolve(*parse_arguments(["digits", *TINY]))[1]
    mean, std = stream.moments
    for task in (0, 4):
        network = read_network(undisturbed / f"tasks/task-{task:02d}/student.safetensors", config).eval()
        for index, part in enumerate(stream.tasks):
            images = torch.from_numpy(stream.source.test.images[part.test]) / 255
            images = (images - mean[:, None, None]) / std[:, None, None]
            with torch.no_grad():
                guesses = [int(network.classifier(network.encoder(x[None])).argmax()) for x in images]
            right = [
                guess == int(label) for guess, label in zip(guesses, stream.source.test.labels[part.test], strict=True)
            ]
            found = results["readers"]["classifier"]["matrix"][task][index]
            if index > task:
                assert found is None
                continue
            assert found == pytest.approx(sum(right) / len(right), abs=1.5 / len(right)), "except for ties"


def test_evaluation_changes_nothing_in_a_network(cache: str) -> None:
    config = resolve("digits", {"data.cache_dir": cache, "encoder.width": "4"})[1]
    network = Network(config, 10).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    Evaluator(config, load_stream(config), Parallel()).row(network, 0, READERS.words)
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


def test_a_finished_run_shows_its_table_again(
    tiny: list[str], undisturbed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*tiny, "--run.dir", str(undisturbed), "--run.resume", "must"]) == 0
    out = capfd.readouterr().out
    assert "final accuracy" in out
    assert "learning rate" in out


def test_wandb_writes_offline(tiny: list[str], launcher: Launcher) -> None:
    assert launcher.run([*tiny, "--stream.tasks", "1", "--log.wandb", "offline"]) == 0
    kept = (run_of(tiny) / "wandb-id.txt").read_text().strip()
    assert list((run_of(tiny) / "wandb").glob(f"offline-run-*-{kept}"))


def test_the_bar_names_what_goes_on(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    assert main([*tiny, "--stream.tasks", "2"]) == 0
    shown = screen.getvalue()
    parts = [
        "task 0 (of 0 to 1), epoch",
        "evaluating untrained network",
        "evaluating task 0",
        "task 1 (of 0 to 1), epoch",
    ]
    places = [shown.index(part) for part in parts]
    assert places == sorted(places)
    assert "evaluating" not in shown.rpartition("\r")[2], "a finished run evaluates nothing any more"
