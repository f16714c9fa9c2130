"""Whole runs on different streams, with fewer labels and different memories; and load_stream on them."""

import json
import math
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from runs import log_of, run_of
from safetensors.torch import load_file
from small_sources import LABELS, table, write_parquet

from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.commands.train import main
from kaizen.config.schema import Config
from kaizen.data.load import Stream, load_stream
from kaizen.data.replay import herding_order
from kaizen.errors import ConfigError
from kaizen.evaluation.features import extract_features
from kaizen.model.teacher import read_network
from kaizen.parallel import Parallel

SHORT = ["--optim.epochs", "1", "--optim.warmup_epochs", "0", "--run.checkpoint_every", "0", "--replay.batch", "8"]


def loaded(arguments: list[str], *more: str) -> tuple[Config, Stream]:
    config = resolve(*parse_arguments([*arguments, *more]))[1]
    return config, load_stream(config)


def replay_of(arguments: list[str], task: int) -> dict[str, torch.Tensor]:
    return load_file(run_of(arguments) / f"tasks/task-{task:02d}/replay.safetensors")


def domains_of(count: int) -> tuple[list[str], datasets.Value]:
    return [("sketch", "real", "clipart")[i // 3 % 3] for i in range(count)], datasets.Value("string")


@pytest.fixture
def drawings(tiny: list[str], tmp_path: Path) -> list[str]:
    """A run over three domains, 12 training and 9 test images each (one of clipart's without a label)."""
    labels = ([-1 if i == 7 else i % 3 for i in range(27)], LABELS)
    source = write_parquet(
        tmp_path / "drawings",
        table(36, domain=domains_of(36)),
        table(27, 100, domain=domains_of(27), label=labels),
    )
    named = ["--data.source", source, "--stream.kind", "domain", "--data.domain_column", "domain"]
    return [*tiny, *named, *SHORT, "--optim.batch", "6"]


def test_a_stream_of_domains_trains_a_task_a_domain(drawings: list[str]) -> None:
    assert main([*drawings, "--stream.domains", "[sketch, clipart]"]) == 0
    results = json.loads((run_of(drawings) / "results.json").read_text())
    assert results["stream"] == {
        "kind": "domain",
        "tasks": [
            {"name": "sketch", "classes": [0, 1, 2], "train_images": 12, "test_images": 9},
            {"name": "clipart", "classes": [0, 1, 2], "train_images": 12, "test_images": 8},
        ],
    }
    assert replay_of(drawings, 1)["task_ids"].bincount().tolist() == [12, 12]


def test_domains_are_sorted_unless_they_are_named(drawings: list[str]) -> None:
    _, stream = loaded(drawings)
    assert [task.name for task in stream.tasks] == ["clipart", "real", "sketch"]
    names = [stream.source.domain_names[d] for d in stream.source.train.domains[stream.tasks[1].train]]
    assert set(names) == {"real"}
    _, stream = loaded(drawings, "--stream.domains", "[real]")
    assert "left out            24 training images" in "\n".join(stream.describe())


def test_numbers_of_domains_are_sorted_by_value(tiny: list[str], tmp_path: Path) -> None:
    numbers = [([10, 9][i // 2 % 2] for i in range(count)) for count in (36, 24)]
    columns = [(list(part), datasets.Value("int64")) for part in numbers]
    source = write_parquet(tmp_path / "data", table(36, domain=columns[0]), table(24, 100, domain=columns[1]))
    named = ["--data.source", source, "--stream.kind", "domain", "--data.domain_column", "domain"]
    assert [task.name for task in loaded(tiny, *named)[1].tasks] == ["9", "10"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--stream.domains", "[real, skethc]"], "stream.domains: names 'skethc'; allowed: clipart, real, sketch"),
        (["--data.domain_column", "style"], "data.domain_column: is 'style'; allowed"),
        (["--classifier.distill_weight", "class_ratio"], "classifier.distill_weight: is 'class_ratio', but task 1"),
    ],
)
def test_what_does_not_fit_the_domains_is_refused_before_any_work(
    drawings: list[str], more: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*drawings, *more]) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1
    assert not run_of(drawings).exists()


def test_a_stream_of_random_parts_trains_on_all_classes_at_once(tiny: list[str]) -> None:
    reservoir = ["--replay.policy", "reservoir", "--replay.per_class", "null", "--replay.total", "30"]
    assert main([*tiny, *SHORT, "--stream.kind", "data", "--stream.tasks", "3", *reservoir]) == 0
    results = json.loads((run_of(tiny) / "results.json").read_text())
    tasks = results["stream"]["tasks"]
    assert [task["train_images"] for task in tasks] == [480, 479, 479]
    assert [task["classes"] for task in tasks] == [list(range(10))] * 3
    for task in range(3):
        memory = replay_of(tiny, task)
        assert len(memory["labels"]) == 30
        assert memory["task_ids"].unique().tolist() == list(range(task + 1))


@pytest.mark.parametrize("stop_gradient", ["true", "false"])
def test_without_a_label_a_run_trains_and_its_classifier_terms_are_zero(tiny: list[str], stop_gradient: str) -> None:
    none = ["--labels.fraction", "0", "--classifier.stop_gradient", stop_gradient, "--stream.tasks", "2"]
    assert main([*tiny, *SHORT, *none]) == 0
    for line in log_of(run_of(tiny)):
        assert line["loss/classifier"] == line["loss/classifier_distill"] == 0.0
        assert all(math.isfinite(value) for value in line.values())
        assert line["loss/ssl"] > 0
        assert (line["loss/distill"] > 0) == (line["task"] > 0)
    assert set(replay_of(tiny, 1)["labels"].tolist()) == {-1}
    results = json.loads((run_of(tiny) / "results.json").read_text())
    assert any(map(any, results["readers"]["classifier"]["matrix"])), "evaluated on true labels"


def test_hidden_labels_change_no_task_and_are_seen_by_nobody(tiny: list[str]) -> None:
    _, full = loaded(tiny)
    config, stream = loaded(tiny, "--labels.fraction", "0.1", "--labels.seed", "3")
    for one, two in zip(full.tasks, stream.tasks, strict=True):
        assert np.array_equal(one.train, two.train)
        assert one.classes == two.classes
    true, seen = stream.source.train.labels, stream.labels
    assert (true >= 0).all(), "the source keeps the true labels"
    kept = [int((seen == label).sum()) for label in range(10)]
    assert kept == [round(0.1 * int((true == label).sum())) for label in range(10)]
    assert f"labels              {sum(kept)} of 1438 training images" in "\n".join(stream.describe())
    assert main([*tiny, *SHORT, "--labels.fraction", "0.1", "--labels.seed", "3"]) == 0
    memory = replay_of(tiny, 4)
    assert memory["labels"].tolist() == seen[memory["sample_ids"].numpy()].tolist()
    assert memory["labels"].unique().tolist() == list(range(-1, 10))
    assert config.labels.fraction == 0.1


def test_labels_of_domains_that_are_left_out_do_not_count(drawings: list[str]) -> None:
    few = ["--stream.domains", "[real]", "--labels.fraction", "0.01"]
    _, stream = loaded(drawings, *few)
    ids = np.flatnonzero(stream.labels >= 0)
    assert sorted(stream.labels[ids]) == [0, 1, 2], "one per class"
    assert set(ids) <= set(stream.tasks[0].train)


def features_of(encoder: torch.nn.Module, stream: Stream, ids: np.ndarray) -> np.ndarray:
    return extract_features(encoder, [(stream.source.train.images, ids)], stream.moments, Parallel()).numpy()


def test_herding_keeps_what_the_snapshots_own_features_choose(tiny: list[str]) -> None:
    herding = ["--replay.policy", "herding", "--labels.fraction", "0.3", "--stream.tasks", "2"]
    assert main([*tiny, *SHORT, *herding]) == 0
    config, stream = loaded(tiny, *herding)
    memory = replay_of(tiny, 1)
    for task, part in enumerate(stream.tasks):
        network = read_network(run_of(tiny) / f"tasks/task-{task:02d}/student.safetensors", config).train()
        groups = np.unique(stream.labels[part.train])
        assert groups[0] == -1
        for label in groups:
            ids = part.train[stream.labels[part.train] == label]
            features = features_of(network.encoder, stream, ids)
            chosen = ids[herding_order(features, 4)].tolist()
            mine = (memory["task_ids"] == task) & (memory["labels"] == int(label))
            assert memory["sample_ids"][mine].tolist() == chosen


def test_features_are_of_eval_mode_and_touch_no_statistics(tiny: list[str]) -> None:
    from kaizen.model.learner import Network

    config, stream = loaded(tiny)
    encoder = Network(config, 10).encoder.train()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    ids = np.arange(300)
    features = features_of(encoder, stream, ids)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.state_dict().items())
    assert all(module.training for module in encoder.modules())
    mean, std = (moment[:, None, None] for moment in stream.moments)
    images = (torch.from_numpy(stream.source.train.images[290:300].copy()) / 255 - mean) / std
    with torch.no_grad():
        expected = encoder.eval()(images)
    assert np.allclose(features[290:], expected.numpy(), atol=1e-5)


def test_a_total_must_hold_an_image_of_each_group(tiny: list[str]) -> None:
    tiny = [*tiny, "--replay.per_class", "null"]
    with pytest.raises(ConfigError, match="at least 15"):
        loaded(tiny, "--replay.total", "14", "--labels.fraction", "0.5")
    loaded(tiny, "--replay.total", "15", "--labels.fraction", "0.5")
    loaded(tiny, "--replay.total", "14", "--labels.fraction", "0.5", "--replay.policy", "reservoir")


@pytest.mark.parametrize("what", ["label", "image", "place"])
def test_a_run_goes_on_from_another_place_but_not_with_other_data(
    what: str, tiny: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = [i % 3 for i in range(36)]
    source = write_parquet(tmp_path / "data", table(36), table(24, 100))
    arguments = [*tiny, *SHORT, "--stream.tasks", "3", "--data.source", source, "--optim.batch", "12"]
    assert main(arguments) == 0
    if what == "label":
        labels[7], labels[8] = labels[8], labels[7]
    images = table(36, 1 if what == "image" else 0, label=(labels, LABELS))
    images.to_parquet(tmp_path / "data" / "train-00000.parquet")
    if what == "place":
        (tmp_path / "data").rename(tmp_path / "moved")
        arguments += ["--data.source", f"parquet:{tmp_path / 'moved'}/"]
    assert main(arguments) == (0 if what == "place" else 2)
    said = capsys.readouterr().err
    assert ("data.source: " in said and "other images or labels" in said) == (what != "place")
