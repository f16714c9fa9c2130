"""Readers of the replay memory: on a run, against readings by hand, and null where there is no memory."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from runs import TASKS, run_of, short
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

from kaizen.cli.resolve import resolve
from kaizen.commands import COMMANDS, run
from kaizen.commands.train import main
from kaizen.config.schema import READERS, Config, fixed_keys, flatten, hash_keys
from kaizen.config.yaml import dump_yaml
from kaizen.data.load import Stream, load_stream
from kaizen.errors import ConfigError
from kaizen.evaluation.evaluator import Evaluator
from kaizen.evaluation.metrics import DEFINITIONS, PROTOCOLS
from kaizen.evaluation.readers import REGISTRY
from kaizen.evaluation.readers.logistic import fit_probe
from kaizen.model.learner import Network
from kaizen.parallel import Parallel
from kaizen.run.checkpoint import STATE, seal

BOTH = ("memory_probe", "ncm")


def results_of(path: Path, name: str = "results.json") -> dict[str, Any]:
    return json.loads((path / name).read_text())


@pytest.fixture
def copied(undisturbed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(undisturbed, tmp_path / "copied"))


def test_every_reader_has_a_class_a_name_for_the_configuration_and_a_protocol() -> None:
    assert list(REGISTRY) == list(READERS.words) == list(PROTOCOLS)


def test_a_finished_run_is_read_by_its_memory_and_results_follow_the_registry(copied: Path) -> None:
    before = results_of(copied)["readers"]
    assert run(["eval", str(copied), "--readers", "ncm,memory_probe"], COMMANDS) == 0
    found = results_of(copied)["readers"]
    assert list(found) == ["classifier", "memory_probe", "ncm"]
    assert found["classifier"] == before["classifier"]
    for reader in BOTH:
        assert found[reader]["untrained"] == [None] * TASKS, "there is no memory yet"
        assert found[reader]["forward_transfer"] is None
        for task, row in enumerate(found[reader]["matrix"]):
            assert [cell is not None for cell in row] == [number <= task for number in range(TASKS)]
        metrics = [metric for metric in DEFINITIONS if metric != "forward_transfer"]
        assert all(found[reader][metric] is not None for metric in metrics)
        assert found[reader]["final_accuracy"] > 0.15, "better than a guess"


def test_their_accuracies_are_those_of_the_images_in_the_file(copied: Path, cache: str) -> None:
    assert run(["eval", str(copied), "--readers", "memory_probe,ncm"], COMMANDS) == 0
    found, task = results_of(copied)["readers"], 2
    config = resolve(str(copied / "config.yaml"), {})[1]
    stream = load_stream(config)
    network = Evaluator(config, stream, Parallel()).network(copied, task).eval()
    mean, std = (moment.reshape(3, 1, 1) for moment in stream.moments)

    def features(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return network.encoder((images.float() / 255 - mean) / std)

    held = load_file(copied / "tasks/task-02/replay.safetensors")
    memory, labels = features(held["images"]), held["labels"]
    test = [torch.from_numpy(part.test) for part in stream.tasks[: task + 1]]
    images, truth = torch.from_numpy(stream.source.test.images.copy()), stream.source.test.labels
    probe = fit_probe(memory, labels, config.run.seed)
    scaler = StandardScaler().fit(memory.double())
    theirs = LogisticRegression(C=1 / (probe.regularisation * len(labels)), max_iter=20000, tol=1e-8)
    theirs.fit(scaler.transform(memory.double()), labels)
    means = {c: F.normalize(F.normalize(memory[labels == c], dim=1).mean(0), dim=0) for c in labels.unique().tolist()}
    for number, ids in enumerate(test):
        rows = features(images[ids])
        right = theirs.predict(scaler.transform(rows.double())) == truth[ids]
        assert found["memory_probe"]["matrix"][task][number] == pytest.approx(right.mean(), abs=1.5 / len(ids))
        nearest = [max(means, key=lambda c: float(F.normalize(row, dim=0) @ means[c])) for row in rows]
        right = np.array(nearest) == truth[ids]
        assert found["ncm"]["matrix"][task][number] == pytest.approx(right.mean(), abs=1.5 / len(ids))


def test_without_a_memory_rows_and_metrics_are_null(
    tiny: list[str], capsys: pytest.CaptureFixture[str], cache: str
) -> None:
    path = run_of(tiny)
    arguments = [*short(tiny), "--replay.policy", "none", "--eval.readers", "classifier,ncm,memory_probe"]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert ", memory_probe -, ncm -" in out or ", ncm -, memory_probe -" in out
    assert "a row of -: nothing to learn from" in " ".join(out.split())
    found = results_of(path)["readers"]
    assert found["classifier"]["final_accuracy"] is not None
    for reader in BOTH:
        assert [found[reader]["untrained"], *found[reader]["matrix"]] == [[None] * 3] * 4
        assert {found[reader][metric] for metric in DEFINITIONS} == {None}
    assert run(["report", str(path)], COMMANDS) == 0
    assert run(["eval", str(path), "--readers", "ncm"], COMMANDS) == 0
    assert results_of(path)["readers"] == found


def test_images_in_the_memory_without_a_label_teach_nothing(config: Config, stream: Stream, tmp_path: Path) -> None:
    folder = tmp_path / "tasks/task-01"
    folder.mkdir(parents=True)
    ids = torch.arange(6)
    held = {"images": torch.from_numpy(stream.source.train.images[:6].copy()), "sample_ids": ids, "task_ids": ids * 0}
    evaluator, network = Evaluator(config, stream, Parallel()), Network(config, 10)
    classes = stream.tasks[1].classes
    labels = torch.tensor([classes[0], classes[1], classes[0], -1, -1, -1])
    for label, known in ((labels, True), (torch.full((6,), -1), False)):
        save_file({**held, "labels": label}, folder / "replay.safetensors")
        for row in evaluator.row(network, 1, BOTH, run=tmp_path).accuracies.values():
            assert [cell is not None for cell in row] == [False, known, False, False, False]
    assert evaluator.row(network, 1, BOTH).accuracies == {reader: [None] * 5 for reader in BOTH}, "no run, no memory"
    (folder / "replay.safetensors").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"replay\.safetensors"):
        evaluator.row(network, 1, BOTH, run=tmp_path)


def test_training_images_are_not_read_for_them(config: Config, stream: Stream, undisturbed: Path) -> None:
    """The features of the memory are computed once for both, and those of the training images not at all."""
    network, batches = Network(config, 10), []
    network.encoder.register_forward_hook(lambda module, inputs, output: batches.append(len(output)))
    Evaluator(config, stream, Parallel()).row(network, 4, BOTH, run=undisturbed)
    assert batches == [40, 256, 103], "four images of each class, and the test images"


def test_a_run_of_an_earlier_version_is_evaluated_and_not_resumed(
    copied: Path, tiny: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((copied / "config.yaml").read_text())
    del config["statistics"], config["classifier"]["align"], config["distill"]["negative_weight"]
    (copied / "config.yaml").write_text(dump_yaml(config))
    kept = hash_keys(fixed_keys(flatten(config)))
    for folder in (copied / "tasks").iterdir():
        (folder / "statistics.safetensors").unlink()
        state = json.loads((folder / STATE).read_text())
        del state["files"]["statistics.safetensors"], state["sha256"]
        state["config_hash"] = kept
        (folder / STATE).write_text(json.dumps(state | {"sha256": seal(state)}))
    assert run(["eval", str(copied), "--readers", "statistics,ncm"], COMMANDS) == 0
    found = results_of(copied)["readers"]
    assert found["statistics"]["matrix"] == [[None] * TASKS] * TASKS
    assert found["ncm"]["final_accuracy"] > 0.15
    assert main([*tiny, "--run.dir", str(copied)]) == 2
    error = capfd.readouterr().err
    assert "contains a run of an earlier version, which had no distill.negative_weight, classifier.align" in error
