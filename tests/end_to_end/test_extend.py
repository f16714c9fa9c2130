"""A run that is extended by new data: only what is new is trained, and it does not matter when what was added."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import Launcher
from datasets import Dataset, Features, Image, Value
from PIL import Image as Picture
from runs import log_of, run_of, snapshots, status_of, wait_for_step
from sklearn.datasets import load_digits

from kaizen.commands import COMMANDS
from kaizen.commands import run as command
from kaizen.commands.train import main as train

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def images(numbers: Sequence[int], split: str) -> list[tuple[Picture.Image, str]]:
    """Some images of these digits, with their names."""
    digits, rows = load_digits(), []
    for number in numbers:
        found = np.flatnonzero(digits.target == number)
        chosen = found[:40] if split == "train" else found[40:60]
        rows += [(Picture.fromarray(np.uint8(digits.images[i] * 15.9)), NAMES[number]) for i in chosen]
    return rows


def parquet(place: Path, numbers: Sequence[int], *, labelled: float = 1.0, column: str = "label") -> str:
    place.mkdir()
    for split in ("train", "test"):
        rows = images(numbers, split)
        names = [name if split == "test" or i % 10 < 10 * labelled else None for i, (_, name) in enumerate(rows)]
        features = Features({"image": Image(), column: Value("string")})
        data = {"image": [picture for picture, _ in rows], column: names}
        Dataset.from_dict(data, features=features).to_parquet(place / f"{split}.parquet")
    return f"parquet:{place}"


def folder(place: Path, numbers: Sequence[int]) -> str:
    for split in ("train", "test"):
        for number, (picture, name) in enumerate(images(numbers, split)):
            (place / split / name).mkdir(parents=True, exist_ok=True)
            picture.save(place / split / name / f"{number}.png")
    return f"imagefolder:{place}"


@pytest.fixture
def begun(tiny: list[str], tmp_path: Path) -> list[str]:
    """Arguments of a run over four classes in two tasks, which is done."""
    source = parquet(tmp_path / "A", [0, 1, 2, 3])
    readers = ["--eval.readers", "[classifier,statistics,linear_probe_seen,memory_probe]", "--optim.batch", "20"]
    arguments = [*tiny, "--data.source", source, "--stream.tasks", "2", *readers]
    assert train(arguments) == 0
    return arguments


def kaizen(arguments: Sequence[str]) -> int:
    return command(arguments, COMMANDS)


def extend(run: Path, source: str, *more: str) -> int:
    return kaizen(["extend", str(run), "--data.source", source, *more])


def results(run: Path) -> dict:
    return json.loads((run / "results.json").read_text())


def test_a_later_task_is_trained_without_the_earlier_images(
    begun: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(begun)
    before, steps = snapshots(run), len(log_of(run))
    shutil.rmtree(tmp_path / "A")
    assert extend(run, folder(tmp_path / "B", [3, 4, 5]), "--labels.fraction", "0.5") == 0
    assert "new classes         five, four" in capsys.readouterr().out
    assert status_of(run)["state"] == "stopped"
    assert "(1 task), which the training command trains" in status_of(run)["reason"]
    assert train(begun) == 0
    after = snapshots(run)
    assert {name: after[name] for name in before} == before
    assert {line["task"] for line in log_of(run)[steps:]} == {2}
    found = results(run)
    assert found["class_names"] == ["one", "three", "two", "zero", "five", "four"]
    assert found["stream"]["tasks"][2] == {
        "name": "five, four, three",
        "classes": [4, 5, 1],
        "train_images": 120,
        "test_images": 60,
    }
    assert found["extensions"][0]["first_task"] == 2
    for reader, row in ((name, of["matrix"][2]) for name, of in found["readers"].items()):
        assert row[:2] == [None, None]
        # A probe needs the true labels of all tasks seen; the others have what the run kept.
        assert (row[2] is None) == (reader == "linear_probe_seen")
        assert found["readers"][reader]["final_accuracy"] is None
    said = capsys.readouterr().out
    assert "gone                parquet:" in said
    assert "extension           1: task 2 from imagefolder:" in said
    mean = 100 * found["readers"]["classifier"]["matrix"][2][2]
    assert f"mean accuracy in % on the tasks seen: classifier {mean:.1f}" in said, "of those whose images are here"
    assert "test images of task 0, 1 were gone after task 2" in said
    # What was measured while the images were here stays.
    assert kaizen(["eval", str(run)]) == 0
    assert results(run)["readers"] == found["readers"]
    assert results(run)["gone"] == found["gone"]
    # Once more with unlabelled images of classes that are known, in a column of another name; then all are evaluated.
    assert extend(run, parquet(tmp_path / "D", [4, 5], labelled=0, column="what"), "--data.label_column", "what") == 0
    parquet(tmp_path / "A", [0, 1, 2, 3])
    assert train(begun) == 0
    matrix = results(run)["readers"]["statistics"]["matrix"]
    assert None not in matrix[3]
    assert kaizen(["eval", str(run), "--readers", "classifier"]) == 0
    rows = results(run)["readers"]["classifier"]["matrix"]
    assert [sum(cell is None for cell in row) for row in rows[1:]] == [2, 1, 0]
    assert kaizen(["report", str(run)]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mocov2plus", "supervised"])
def test_two_extensions_are_equal_one_by_one_at_once_and_from_the_beginning(
    method: str, tiny: list[str], tmp_path: Path
) -> None:
    one = [*tiny, "--data.source", parquet(tmp_path / "A", [0, 1, 2]), "--stream.tasks", "1", "--method.name", method]
    one += ["--optim.batch", "20", "--replay.policy", "reservoir", "--replay.per_class", "null", "--replay.total", "20"]
    one += ["--method.queue_size", "64"] if method == "mocov2plus" else []
    assert train([*one, "--optim.epochs", "3"]) == 0
    run, other = run_of(one), tmp_path / "other"
    shutil.copytree(run, other)
    b, c = folder(tmp_path / "B", [2, 3]), parquet(tmp_path / "C", [4, 5], labelled=0.5)
    more = ["--stream.kind", "class", "--stream.tasks", "2", "--optim.epochs", "1"]
    again = [*one, "--optim.epochs", "3"]
    assert extend(run, b) == 0
    assert train(again) == 0
    assert extend(run, c, *more) == 0
    assert train(again) == 0
    assert extend(other, b) == 0
    assert extend(other, c, *more) == 0
    assert train([*again, "--run.dir", str(other)]) == 0
    fresh = tmp_path / "fresh"
    assert train([str(run / "config.yaml"), "--run.dir", str(fresh)]) == 0
    assert len(snapshots(run)) == 4 * 4
    assert snapshots(run) == snapshots(other) == snapshots(fresh)
    assert results(run)["readers"] == results(other)["readers"] == results(fresh)["readers"]
    assert results(run)["stream"] == results(other)["stream"]


@pytest.mark.slow
def test_an_extension_by_two_processes_survives_a_kill(begun: list[str], tmp_path: Path, launcher: Launcher) -> None:
    run, whole = run_of(begun), tmp_path / "whole"
    shutil.rmtree(tmp_path / "A")
    assert extend(run, folder(tmp_path / "B", [3, 4, 5]), "--labels.fraction", "0.5") == 0
    assert train(begun) == 0
    assert extend(run, parquet(tmp_path / "C", [6, 7, 8], labelled=0.5), "--optim.epochs", "4") == 0
    shutil.copytree(run, whole)
    assert launcher.run_several(2, [*begun, "--run.dir", str(whole)]) == [0, 0]
    steps = len(log_of(run))
    one, other = launcher.start_several(2, begun)
    wait_for_step(run, steps + 9, one.is_alive)
    other.kill()
    one.join(200)
    assert one.exitcode == 3
    assert list((run / "checkpoints").glob("task-03_*"))
    assert launcher.run_several(2, begun) == [0, 0]
    assert snapshots(run) == snapshots(whole)
    assert results(run)["readers"] == results(whole)["readers"]


def test_what_cannot_be_extended_ends_with_one_line(
    begun: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, source = run_of(begun), f"parquet:{tmp_path / 'A'}"
    before = (run / "config.yaml").read_bytes()
    for arguments, words in {
        ("--encoder.width", "8", "--data.source", source): "encoder.width: cannot change in an extension",
        ("--data.image_size", "16", "--data.source", source): "data.image_size: cannot change",
        ("--optim.epoch", "3", "--data.source", source): "did you mean optim.epochs?",
        ("--labels.fraction", "0.5"): "data.source: is missing",
        ("--data.source", "imagefolder:/nowhere"): "/nowhere is not a directory",
        ("more.yaml", "--data.source", source): "contain 'more.yaml'",
        ("--data.source", source, "--stream.tasks", "9"): "9 tasks cannot be cut from 4 classes",
    }.items():
        assert kaizen(["extend", str(run), *arguments]) == 2
        assert words in capsys.readouterr().err
    assert kaizen(["extend", str(tmp_path / "nothing"), "--data.source", source]) == 2
    assert (run / "config.yaml").read_bytes() == before
    weights = ["--classifier.distill_weight", "class_ratio", "--run.dir", str(tmp_path / "ratio")]
    assert train([*begun, *weights, "--preset", "replay"]) == 0
    # The file of a run names its recipe and preset, and a run that is resumed from it keeps them.
    assert train([str(tmp_path / "ratio/config.yaml"), "--run.dir", str(tmp_path / "ratio")]) == 0
    assert [results(tmp_path / "ratio")[key] for key in ("recipe", "preset")] == ["digits", "replay"]
    assert extend(tmp_path / "ratio", source) == 2
    assert "brings no new class in task 2" in capsys.readouterr().err
    assert extend(run, source, "--data.test_fraction", "0.25") == 0
    assert "held out            40 images of the training split" in capsys.readouterr().out
    assert extend(run, source) == 2
    assert "already extended" in capsys.readouterr().err
    # What is new must be there until it is trained.
    shutil.rmtree(tmp_path / "A")
    assert train(begun) == 2
    assert "is not a directory" in capsys.readouterr().err
