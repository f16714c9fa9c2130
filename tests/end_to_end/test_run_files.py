"""Runs on images that stay encoded: the same for any number of workers and after a kill, and useful afterwards."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import photographs
import pytest
import torch
from conftest import TINY, Launcher
from runs import log_of, snapshots, wait_for_step
from safetensors.torch import load_file

import kaizen
from kaizen.commands import extend, report
from kaizen.config.yaml import dump_yaml, parse_yaml

SMALL = [*TINY, "--stream.tasks", "2", "--data.image_size", "24", "--optim.batch", "16", "--replay.batch", "8"]
READERS = ["--eval.readers", "[classifier,knn]"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """96 photographs of four classes, of 40 to 120 pixels."""
    folder = tmp_path_factory.mktemp("photographs")
    return photographs.write(folder, 96, least=40, most=120, classes=4)


@pytest.fixture(scope="module")
def arguments(source: str, cache: str) -> list[str]:
    return ["digits-mocov2plus", *SMALL, *READERS, "--data.source", source, "--data.cache_dir", cache]


@pytest.fixture(scope="module")
def whole(arguments: list[str], launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run by one worker."""
    run = tmp_path_factory.mktemp("files") / "run"
    assert launcher.run([*arguments, "--data.workers", "1", "--run.dir", str(run)]) == 0
    return run


def test_a_run_killed_in_every_task_ends_byte_for_byte_as_one_by_another_number_of_workers(
    whole: Path, arguments: list[str], launcher: Launcher, tmp_path: Path
) -> None:
    cut = [*arguments, "--data.workers", "4", "--run.dir", str(tmp_path / "run")]
    for step in (3, 9):  # tasks of 6 steps or so
        process = launcher.start(cut)
        wait_for_step(tmp_path / "run", step, process.is_alive)
        process.kill()
        process.join()
    assert launcher.run(cut) == 0
    assert snapshots(whole) == snapshots(tmp_path / "run")
    losses = [[line["loss/total"] for line in log_of(run)] for run in (whole, tmp_path / "run")]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(
    whole: Path, arguments: list[str], launcher: Launcher, tmp_path: Path
) -> None:
    assert launcher.run_several(2, [*arguments, "--run.dir", str(tmp_path / "run")]) == [0, 0]
    # The same images and crops; sums over halves of a batch are rounded otherwise, and that grows from step to step.
    first, second = ([line["loss/total"] for line in log_of(run)] for run in (whole, tmp_path / "run"))
    assert first[:3] == pytest.approx(second[:3], rel=1e-4)
    assert len(first) == len(second)
    memories = [load_file(run / "tasks/task-01/replay.safetensors") for run in (whole, tmp_path / "run")]
    assert all(torch.equal(memories[0][name], memories[1][name]) for name in memories[0])


def test_the_memory_holds_the_files_bytes_and_the_results_count_them(whole: Path, source: str) -> None:
    held = load_file(whole / "tasks/task-01/replay.safetensors")
    files = {path.read_bytes() for path in Path(source.partition(":")[2]).glob("train/*/*.jpg")}
    ends = held["offsets"].tolist()
    kept = [held["images"][a:b].numpy().tobytes() for a, b in pairwise(ends)]
    assert len(kept) == 16
    assert set(kept) <= files
    results = json.loads((whole / "results.json").read_text())
    assert results["memory_bytes"]["images"][-1] == sum(map(len, kept))


def test_a_model_sees_files_as_the_evaluation_did(whole: Path, source: str) -> None:
    model = kaizen.load_model(whole)
    assert (model.description.image_size, model.description.resize) == (24, 27)
    files = sorted(Path(source.partition(":")[2]).glob("test/*/*.jpg"))
    results = json.loads((whole / "results.json").read_text())
    accuracies = results["readers"]["classifier"]["matrix"][-1]
    names = [prediction[0].name for prediction in model.predict(files, top=1)]
    right = {task["name"]: [] for task in results["stream"]["tasks"]}
    for file, name in zip(files, names, strict=True):
        (task,) = (task for task in right if file.parent.name in task.split(", "))
        right[task].append(name == file.parent.name)
    assert [float(np.mean(found)) for found in right.values()] == pytest.approx(accuracies)


@pytest.mark.slow
def test_a_run_is_extended_by_images_that_stay_encoded_too(
    whole: Path, arguments: list[str], launcher: Launcher, tmp_path: Path
) -> None:
    import shutil

    run = tmp_path / "run"
    shutil.copytree(whole, run)
    # Small squares, which auto would store as pixels.
    more = photographs.write(tmp_path / "more", 24, least=48, most=48, classes=2)
    assert extend.main([str(run), "--data.source", more]) == 0
    assert launcher.run([str(run / "config.yaml"), "--run.dir", str(run)]) == 0
    held = load_file(run / "tasks/task-02/replay.safetensors")
    assert len(held["labels"]) == len(held["offsets"]) - 1 == 24
    assert report.main([str(run)]) == 0


@pytest.mark.slow
def test_a_run_of_an_earlier_version_keeps_its_pixels(
    source: str, arguments: list[str], launcher: Launcher, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    begun = [*arguments, "--run.dir", str(run)]
    assert launcher.run([*begun, "--data.store", "pixels"]) == 0
    tree = parse_yaml((run / "config.yaml").read_text())
    assert (tree["data"].pop("store"), tree["eval"].pop("resize")) == ("pixels", None)
    (run / "config.yaml").write_text("# recipe: digits-mocov2plus\n" + dump_yaml(tree))
    assert launcher.run(begun) == 0
    assert extend.main([str(run), "--data.source", source]) == 0
    assert launcher.run([str(run / "config.yaml"), "--run.dir", str(run)]) == 0
    assert load_file(run / "tasks/task-02/replay.safetensors")["images"].ndim == 4
