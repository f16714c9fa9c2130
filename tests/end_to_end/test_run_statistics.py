"""Runs that keep statistics of past classes: what the files say, with which streams and labels, aligned, resumed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import run_of, short
from safetensors.torch import load_file
from torch import Tensor

from kaizen.cli.resolve import resolve
from kaizen.commands.train import main
from kaizen.data.load import load_stream
from kaizen.data.views import normalize
from kaizen.model.statistics import Statistics, fit_map, memory_weights, statistics_bytes
from kaizen.model.teacher import read_network

BOTH = ["--eval.readers", "[classifier,statistics]"]
FEATURES = 32
"""Size of the features of a tiny run."""


def results_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def saved(run: Path, task: int, name: str = "statistics") -> dict[str, Tensor]:
    return load_file(run / f"tasks/task-{task:02d}/{name}.safetensors")


def trained(arguments: list[str], *more: str) -> Path:
    """A run of three short tasks."""
    tokens = [*short(arguments), *BOTH, *more]
    assert main(tokens) == 0
    return run_of(tokens[len(tokens) - tokens[::-1].index("--run.dir") - 1 :])


def test_the_files_follow_from_the_snapshots_by_hand(tiny: list[str]) -> None:
    run = trained(tiny, "--labels.fraction", "0.5", "--statistics.ridge", "0.05", "--statistics.memory_share", "0.5")
    config = resolve(str(run / "config.yaml"), {})[1]
    stream = load_stream(config)
    pixels = torch.from_numpy(np.array(stream.source.train.images))

    def features(task: int, images: Tensor) -> Tensor:
        network = read_network(run / f"tasks/task-{task:02d}/student.safetensors", config).eval()
        with torch.no_grad():
            return network.encoder(normalize(images, *stream.moments)).double()

    expected: Statistics | None = None
    for task, part in enumerate(stream.tasks):
        ids = torch.from_numpy(np.sort(part.train))
        new = features(task, pixels[ids])
        found = Statistics.measured(new, torch.from_numpy(stream.labels)[ids])
        if expected is not None:
            remembered = saved(run, task - 1, "replay")["images"]
            old = torch.cat([features(task - 1, pixels[ids]), features(task - 1, remembered)])
            weights = memory_weights(len(ids), len(remembered), 0.5)
            carry = fit_map(old, torch.cat([new, features(task, remembered)]), weights, 0.05)
            torch.testing.assert_close(saved(run, task)["map.weight"].double(), carry.weight, rtol=1e-3, atol=1e-3)
            residuals, labels = (
                features(task, remembered) - carry(old[len(ids) :]),
                saved(run, task - 1, "replay")["labels"],
            )
            found = expected.carried(carry).corrected(residuals, labels, 5.0).merged(found)
        held = Statistics.of(saved(run, task))
        assert held.classes.tolist() == found.classes.tolist()
        assert held.counts.tolist() == found.counts.tolist()
        torch.testing.assert_close(held.means, found.means, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(held.covariance, found.covariance, rtol=5e-3, atol=5e-3)
        weight, bias = held.classifier(config.statistics.shrinkage)
        torch.testing.assert_close(saved(run, task)["weight"].double(), weight, rtol=1e-4, atol=1e-4)
        test = features(task, torch.from_numpy(np.array(stream.source.test.images)))
        guesses = held.classes[(test @ weight.T + bias).argmax(dim=1)].numpy()
        for number, other in enumerate(stream.tasks[: task + 1]):
            right = float(np.mean((guesses == stream.source.test.labels)[other.test]))
            row = results_of(run)["readers"]["statistics"]["matrix"][task]
            assert row[number] == pytest.approx(right, abs=0.011), "the layer is read in float32"
        expected = held
    assert results_of(run)["memory_bytes"]["statistics"] == [statistics_bytes(c, FEATURES) for c in (4, 7, 10)]


def test_without_statistics_there_is_no_file_and_the_row_is_null(tiny: list[str]) -> None:
    run = trained(tiny, "--statistics.keep", "false")
    assert not list(run.glob("tasks/*/statistics*"))
    results = results_of(run)
    assert results["memory_bytes"]["statistics"] == [0, 0, 0]
    assert results["readers"]["statistics"]["matrix"] == [[None] * 3] * 3
    assert results["readers"]["statistics"]["final_accuracy"] is None
    assert results["readers"]["classifier"]["final_accuracy"] is not None


@pytest.mark.parametrize(
    "keys",
    [
        ["--labels.fraction", "0"],
        ["--stream.kind", "data"],
        ["--replay.policy", "none", "--replay.per_class", "null"],
        ["--stream.tasks", "10", "--optim.epochs", "1", "--optim.warmup_epochs", "0"],
        ["--classifier.weight", "0"],
    ],
    ids=["no labels", "classes that return", "no memory", "one class a task", "a classifier without labels"],
)
def test_every_kind_of_stream_ends_well(keys: list[str], tiny: list[str]) -> None:
    labelled = keys[:2] != ["--labels.fraction", "0"]
    aligned = ["--classifier.align", "statistics", "--classifier.align_steps", "40"] if labelled else []
    run = trained(tiny, *aligned, *keys)
    results, last = results_of(run), len(list((run / "tasks").iterdir())) - 1
    held, reader = Statistics.of(saved(run, last)), results["readers"]["statistics"]
    if not labelled:
        assert len(held.classes) == 0
        assert reader["final_accuracy"] is None
        return
    assert held.classes.tolist() == list(range(10))
    assert held.counts.sum() == sum(task["train_images"] for task in results["stream"]["tasks"])
    assert reader["final_accuracy"] > 0.15, "better than a guess"


@pytest.mark.slow
def test_alignment_changes_the_classifier_alone_and_helps(tiny: list[str], tmp_path: Path) -> None:
    plain = trained(tiny, "--run.dir", str(tmp_path / "plain"))
    aligned = trained(tiny, "--run.dir", str(tmp_path / "aligned"), "--classifier.align", "statistics")
    before, after = saved(plain, 0, "student"), saved(aligned, 0, "student")
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"classifier"}
    assert saved(plain, 0).keys() == saved(aligned, 0).keys()
    assert torch.equal(saved(plain, 0)["means"], saved(aligned, 0)["means"])
    finals = [results_of(run)["readers"]["classifier"]["final_accuracy"] for run in (plain, aligned)]
    assert finals[1] > finals[0] + 0.1


def test_a_budget_in_bytes_is_kept_after_every_task(tiny: list[str]) -> None:
    budget = 12_000
    run = trained(tiny, "--replay.per_class", "null", "--replay.bytes", str(budget))
    held = results_of(run)["memory_bytes"]
    image = 3 * 8 * 8
    for images, statistics in zip(held["images"], held["statistics"], strict=True):
        assert budget - image < images + statistics <= budget


def test_a_budget_that_cannot_pay_an_image_of_each_class_is_refused_before_work(
    tiny: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*short(tiny), "--replay.per_class", "null", "--replay.bytes", "2500"]) == 2
    needed = 10 * 192 + statistics_bytes(10, FEATURES)
    said = f"replay.bytes: is 2500; 10 images, one of each class of each task, take 1920 bytes and {needed - 1920} of "
    error = capfd.readouterr().err
    assert said + f"statistics; allowed: at least {needed}, or statistics.keep false" in error
    assert main([*short(tiny), "--replay.per_class", "null", "--replay.bytes", "900", "--replay.policy", "none"]) == 2
    assert f"allowed: at least {needed - 1920}" in capfd.readouterr().err
    assert not run_of(tiny).exists()
