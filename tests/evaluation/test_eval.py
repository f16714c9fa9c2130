"""Readers that change between starts, and `python -m kaizen eval`: rows come from the snapshots, each once."""

import json
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import TINY, Launcher
from runs import TASKS, run_of, snapshots

import kaizen.training.trainer
from kaizen.commands import COMMANDS, run
from kaizen.commands.train import main

ALL = "[classifier, linear_probe_seen, linear_probe_all, knn]"


@pytest.fixture(scope="module")
def full(launcher: Launcher, undisturbed: Path, cache: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run, trained again with every reader."""
    path = tmp_path_factory.mktemp("full") / "run"
    arguments = ["digits", *TINY, "--data.cache_dir", cache, "--run.dir", str(path), "--eval.readers", ALL]
    assert launcher.run(arguments) == 0
    return path


def results_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "results.json").read_text())


def files_of(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def test_every_reader_has_its_matrix_and_readers_change_no_training(full: Path, undisturbed: Path) -> None:
    found = results_of(full)["readers"]
    assert list(found) == ["classifier", "linear_probe_seen", "linear_probe_all", "knn"]
    for reader in found.values():
        assert [len(row) for row in (reader["untrained"], *reader["matrix"])] == [TASKS] * (TASKS + 1)
        assert reader["forgetting"] is not None
    assert found["linear_probe_seen"]["matrix"][-1] == found["linear_probe_all"]["matrix"][-1]
    assert found["linear_probe_seen"]["matrix"][0] != found["linear_probe_all"]["matrix"][0]
    assert found["classifier"] == results_of(undisturbed)["readers"]["classifier"]
    assert snapshots(full) == snapshots(undisturbed)
    told = "".join(ElementTree.fromstring((full / "results.svg").read_text()).itertext()).replace("\xa0", " ")
    assert all(f"{name}: top-1" in told for name in ("classifier", "linear probe, seen", "linear probe, all", "knn"))


def test_eval_gives_the_same_again_and_touches_nothing_else(
    full: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    shutil.copytree(full, path)
    before, files = results_of(path), files_of(path)
    assert run(["eval", str(path)], COMMANDS) == 0
    assert results_of(path)["readers"] == before["readers"]
    assert "knn: top-1 accuracy" in capfd.readouterr().out
    (path / "results.json").unlink()
    assert run(["eval", str(path)], COMMANDS) == 0
    after = results_of(path)
    assert {**before, "seconds": 0, "peak_memory_bytes": 0} == {**after, "seconds": 0, "peak_memory_bytes": 0} | {
        "images_per_second": before["images_per_second"]
    }
    assert after["images_per_second"] == pytest.approx(before["images_per_second"])
    assert after["seconds"]["train"] == before["seconds"]["train"]
    assert len(after["seconds"]["evaluate"]) == TASKS
    files.pop("results.json")
    now = files_of(path)
    now.pop("results.json")
    assert now == files


def test_eval_of_some_readers_keeps_the_others(full: Path, undisturbed: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    assert run(["eval", str(path), "--readers", "knn,linear_probe_all"], COMMANDS) == 0
    found, expected = results_of(path)["readers"], results_of(full)["readers"]
    assert found == {name: expected[name] for name in ("classifier", "linear_probe_all", "knn")}


def test_eval_of_an_unfinished_run_evaluates_the_tasks_done(full: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    shutil.copytree(full, path)
    for task in (2, 3, 4):
        shutil.rmtree(path / f"tasks/task-{task:02d}")
    (path / "results.json").unlink()
    assert run(["eval", str(path), "--readers=knn"], COMMANDS) == 0
    found, expected = results_of(path)["readers"]["knn"], results_of(full)["readers"]["knn"]
    assert (found["untrained"], found["matrix"]) == (expected["untrained"], expected["matrix"][:2])
    assert found["final_accuracy"] is None


def test_a_run_that_goes_on_with_other_readers_fills_what_they_lack(
    tiny: list[str], full: Path, undisturbed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, expected = run_of(tiny), results_of(full)["readers"]
    shutil.copytree(undisturbed, path)
    results = results_of(path)
    results["readers"]["knn"] = {**expected["knn"], "matrix": expected["knn"]["matrix"][:2]}
    (path / "results.json").write_text(json.dumps(results))
    for folder in ("tasks/task-04", "checkpoints"):
        shutil.rmtree(path / folder)
    chosen = ["--eval.readers", "[knn, linear_probe_all, classifier]"]
    assert main([*tiny, *chosen]) == 0
    found = results_of(path)
    assert found["readers"] == {name: expected[name] for name in ("classifier", "linear_probe_all", "knn")}
    assert list(found["readers"]) == ["classifier", "linear_probe_all", "knn"]
    assert [len(part) for part in found["seconds"].values() if isinstance(part, list)] == [TASKS] * 2
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith("task ")]
    assert [line.count(", knn") + line.count(": knn") for line in lines] == [0, 0, 1, 1, 1], "no row is added twice"
    assert "mean accuracy in % on the tasks seen: knn" in lines[4]


def test_a_reader_that_is_no_longer_asked_for_keeps_its_rows(
    tiny: list[str], full: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = run_of(tiny)
    shutil.copytree(full, path)
    shutil.rmtree(path / "tasks/task-04")
    assert main([*tiny, "--eval.readers", "[knn]"]) == 0
    found, expected = results_of(path)["readers"], results_of(full)["readers"]
    assert found["knn"] == expected["knn"]
    assert found["classifier"]["matrix"] == expected["classifier"]["matrix"][:4]
    assert found["classifier"]["final_accuracy"] is None
    assert main([*tiny, "--eval.readers", ALL]) == 0
    assert results_of(path)["readers"] == expected


@pytest.mark.parametrize("dies_at", ["train 0", "evaluate -1", "evaluate 0"])
def test_the_untrained_network_is_looked_at_after_the_first_task_and_once(
    dies_at: str, tiny: list[str], undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No first step waits for it, and a run that ends before, between or after the looks goes on with the next one."""
    order: list[str] = []
    parts = ["train 0", "evaluate -1", "evaluate 0", "train 1", "evaluate 1"]

    def done(part: str) -> None:
        order.append(part)
        if order[-1] == dies_at:
            raise KeyboardInterrupt

    class Watched(kaizen.training.trainer.Trainer):
        def train_task(self, task: int, *args: Any) -> None:
            super().train_task(task, *args)
            done(f"train {task}")

        def evaluate(self, task: int, *args: Any) -> None:
            super().evaluate(task, *args)
            done(f"evaluate {task}")

    monkeypatch.setattr(kaizen.training.trainer, "Trainer", Watched)
    assert main(tiny) == 75
    assert order == parts[: parts.index(dies_at) + 1]
    assert main(tiny) == 0
    assert order[:5] == parts
    found, expected = results_of(run_of(tiny)), results_of(undisturbed)
    assert found["readers"] == expected["readers"]
    assert len(found["seconds"]["evaluate"]) == TASKS


MISTAKES = {
    "no run": (["/no/such/run"], "RUN"),
    "nothing": ([], "RUN"),
    "two runs": (["a", "b"], "RUN"),
    "unknown reader": (["RUN", "--readers", "knn,tarot"], "--readers"),
    "a reader twice": (["RUN", "--readers", "knn,knn"], "--readers"),
    "no reader": (["RUN", "--readers"], "--readers"),
    "unknown option": (["RUN", "--reader", "knn"], "--reader"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_end_with_code_2_and_one_line(case: str, undisturbed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokens, key = MISTAKES[case]
    assert run(["eval", *(str(undisturbed) if token == "RUN" else token for token in tokens)], COMMANDS) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"error: {key}: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("file", ["tasks/task-02/student.safetensors", "tasks/task-02/state.json", "results.json"])
def test_damage_ends_with_code_2_and_names_the_file(
    file: str, undisturbed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run"
    shutil.copytree(undisturbed, path)
    (path / file).write_bytes((path / file).read_bytes()[:-9])
    files = files_of(path)
    assert run(["eval", str(path)], COMMANDS) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"error: {path / file}: ")
    assert error.count("\n") == 1
    assert files_of(path) == files


def test_help_names_the_readers(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "--help"], COMMANDS) == 0
    out = capsys.readouterr().out
    assert "--readers" in out
    assert "linear_probe_seen" in out
