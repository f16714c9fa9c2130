"""Readers that change between starts, and `python -m kaizen eval`: each row is computed once, from a snapshot."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import datasets
import pytest
from conftest import TINY, Launcher
from runs import TASKS, run_of, snapshots

import kaizen.training.trainer
from kaizen.commands import COMMANDS, run
from kaizen.commands.train import main
from kaizen.data.source import load_source
from kaizen.run.measures import MEASURES

ALL = "[classifier, linear_probe_seen, linear_probe_all, knn]"


@pytest.fixture(scope="module")
def full(launcher: Launcher, undisturbed: Path, cache: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run, trained again with all readers."""
    path = tmp_path_factory.mktemp("full") / "run"
    arguments = ["digits", *TINY, "--data.cache_dir", cache, "--run.dir", str(path), "--eval.readers", ALL]
    assert launcher.run(arguments) == 0
    return path


def results_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "results.json").read_text())


def files_of(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


Digits = Callable[..., str]


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


@pytest.mark.parametrize("dies_at", [pytest.param("train 0", marks=pytest.mark.slow), "evaluate -1", "evaluate 0"])
def test_the_untrained_network_is_looked_at_after_the_first_task_and_once(
    dies_at: str, tiny: list[str], undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No first step waits for it, and a run that ends before, between or after evaluations resumes with the next."""
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


@pytest.fixture(scope="module")
def digits(cache: str, tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """Writes the bundled digits as a separate parquet source, unchanged or changed."""
    source = load_source("digits", cache_dir=cache)

    def write(name: str, images: int | None = None, classes: str = "0123456789") -> str:
        folder = tmp_path_factory.mktemp(name)
        columns = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(classes))}
        for split, part, count in (("train", source.train, None), ("test", source.test, images)):
            rows = {"image": list(part.images[:count].transpose(0, 2, 3, 1)), "label": part.labels[:count]}
            held = datasets.Dataset.from_dict(rows, features=datasets.Features(columns))
            held.to_parquet(folder / f"{split}.parquet")
        return f"parquet:{folder}"

    return write


def test_data_that_were_moved_are_found_by_their_key_and_known_by_their_digest(
    undisturbed: Path, tmp_path: Path, cache: str, digits: Digits
) -> None:
    path, source = tmp_path / "run", digits("moved")
    shutil.copytree(undisturbed, path)
    assert run(["eval", str(path), "--data.source", source, "--data.cache_dir", cache], COMMANDS) == 0
    before, after = results_of(undisturbed), results_of(path)
    assert after["readers"] == before["readers"]
    assert after["config_hash"] == before["config_hash"]
    assert after["data"] == {**before["data"], "source": source}


def test_other_data_are_refused_or_have_a_file_of_their_own(
    undisturbed: Path, tmp_path: Path, cache: str, digits: Digits, capfd: pytest.CaptureFixture[str]
) -> None:
    path, source = tmp_path / "run", digits("fewer", images=100)
    shutil.copytree(undisturbed, path)
    files, given = files_of(path), ["eval", str(path), "--data.source", source, "--data.cache_dir", cache]
    assert run(given, COMMANDS) == 2
    error = capfd.readouterr().err
    assert (
        f"error: data.source: {source} contains different images or labels from those that {path} was trained on"
        in error
    )
    assert "--other-data NAME" in error
    assert files_of(path) == files
    assert run([*given, "--other-data", "fewer", "--readers", "classifier,memory_probe,ncm"], COMMANDS) == 0
    found = json.loads((path / "results-fewer.json").read_text())
    assert sum(task["test_images"] for task in found["stream"]["tasks"]) == 100
    assert found["data"]["source"] == source
    assert all(found["readers"][reader]["final_accuracy"] > 0.1 for reader in ("memory_probe", "ncm")), (
        "the run's memory"
    )
    own = json.loads((path / "results.json").read_text())["data"]
    assert [found["data"][moment] == own[moment] for moment in ("mean", "std")] == [True, True], "normalised as the run"
    assert {name: content for name, content in files_of(path).items() if name != "results-fewer.json"} == files
    # A file contains results on one data set only.
    assert run(["eval", str(path), "--other-data", "fewer"], COMMANDS) == 2
    assert "contains results on different images or labels" in capfd.readouterr().err


def test_other_data_of_other_classes_are_refused(
    undisturbed: Path, cache: str, digits: Digits, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ["--data.source", digits("named", images=100, classes="abcdefghij"), "--data.cache_dir", cache]
    assert run(["eval", str(undisturbed), *given, "--other-data", "named"], COMMANDS) == 2
    assert "has the classes a, b, ... (10), the run 0, 1, ... (10)" in capfd.readouterr().err
    assert not (undisturbed / "results-named.json").exists()


def test_results_of_schema_1_are_kept_and_written_as_schema_2(undisturbed: Path, tmp_path: Path) -> None:
    path, expected = tmp_path / "run", results_of(undisturbed)
    shutil.copytree(undisturbed, path)
    later = ("data", "class_names", "rankme", "memory_bytes", *MEASURES)
    old = {key: value for key, value in expected.items() if key not in later}
    text = json.dumps({**old, "schema": 1}).replace("null", "0.0")
    (path / "results.json").write_text(text)
    assert run(["eval", str(path), "--readers", "[knn]"], COMMANDS) == 0
    found = results_of(path)
    assert found["readers"].pop("knn")["forward_transfer"] is None
    measured = {"seconds": 0, "peak_memory_bytes": 0}
    assert {**found, **measured, "preset": None} == {**expected, **measured, "preset": None}


MISTAKES = {
    "no run": (["/no/such/run"], "RUN"),
    "nothing": ([], "arguments: the following arguments are required: RUN"),
    "two runs": (["a", "b"], "arguments: unrecognized arguments: b"),
    "unknown reader": (["RUN", "--readers", "knn,tarot"], "arguments: argument --readers: is 'tarot'; allowed"),
    "a reader twice": (["RUN", "--readers", "[knn, knn]"], "arguments: argument --readers: is '[knn, knn]'; allowed"),
    "no reader": (["RUN", "--readers"], "arguments: argument --readers"),
    "unknown option": (["RUN", "--reader", "knn"], "arguments: unrecognized arguments: --reader"),
    "a key of the training": (["RUN", "--optim.lr", "1"], "arguments: unrecognized arguments: --optim.lr"),
    "a name with a slash": (["RUN", "--other-data", "a/b"], "arguments: argument --other-data: is 'a/b'; allowed"),
    "data that are not there": (["RUN", "--data.source", "parquet:/no/such"], "data.source"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_end_with_code_2_and_one_line(case: str, undisturbed: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tokens, said = MISTAKES[case]
    assert run(["eval", *(str(undisturbed) if token == "RUN" else token for token in tokens)], COMMANDS) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"error: {said}")
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
