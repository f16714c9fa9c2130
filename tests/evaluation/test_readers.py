"""Readers after a task: the data that each may see, and what is computed once for all."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from kaizen.config.schema import ClassifierConfig, Config
from kaizen.data.load import Stream, load_stream
from kaizen.errors import ConfigError, Stopped, TrainingFailed
from kaizen.evaluation.evaluator import Evaluator
from kaizen.evaluation.features import BATCH
from kaizen.evaluation.readers import Check, logistic, neighbours, probes
from kaizen.evaluation.readers.logistic import LinearProbe, fit_probe
from kaizen.evaluation.readers.neighbours import nearest_neighbours
from kaizen.model.learner import Network
from kaizen.parallel import Parallel

READERS = ("classifier", "linear_probe_seen", "linear_probe_all", "knn")


def test_features_that_are_not_finite_end_the_run(config: Config, stream: Stream) -> None:
    network = Network(config, 10)
    network.encoder.conv1.weight.data[0] = float("nan")
    with pytest.raises(TrainingFailed, match="features of some images"):
        Evaluator(config, stream, Parallel()).row(network, 0, ("classifier",))


def test_a_solver_that_did_not_converge_is_told(
    config: Config, stream: Stream, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logistic, "STEPS", 1)
    Evaluator(config, stream, Parallel()).row(Network(config, 10), 0, ("linear_probe_seen",))
    assert "note: linear_probe_seen after task 0: the solver ended before it converged" in capsys.readouterr().out


def known(config: Config, stream: Stream, task: int, reader: str = "classifier") -> list[bool]:
    row = Evaluator(config, stream, Parallel()).row(Network(config, 10), task, (reader,))
    return [value is not None for value in row.accuracies[reader]]


def test_a_classifier_that_was_taught_nothing_guesses_every_class(config: Config, stream: Stream) -> None:
    assert known(config, stream, 0) == [True, False, False, False, False]
    assert all(known(config, stream, -1))
    assert all(known(config, replace(stream, labels=np.full_like(stream.labels, -1)), 0))
    assert all(known(config.model_copy(update={"classifier": ClassifierConfig(weight=0.0)}), stream, 0))


def test_readers_know_every_class_from_the_first_random_part_on(config: Config) -> None:
    kinds = {"stream": config.stream.model_copy(update={"kind": "data"})}
    parts = load_stream(config.model_copy(update=kinds))
    assert all(all(known(config, parts, 0, reader)) for reader in ("classifier", "knn"))


class Seen:
    """The data that the readers were given, and the regularisation that they chose."""

    def __init__(self) -> None:
        self.probes: list[tuple[set[int], int, LinearProbe]] = []
        self.neighbours: list[tuple[set[int], int, int]] = []

    def fit(self, features: Tensor, labels: Tensor, seed: int, check: Check) -> LinearProbe:
        probe = fit_probe(features, labels, seed, check)
        self.probes.append((set(labels.tolist()), len(labels), probe))
        return probe

    def vote(self, train: Tensor, labels: Tensor, test: Tensor, k: int, check: Check) -> Tensor:
        self.neighbours.append((set(labels.tolist()), len(labels), k))
        return nearest_neighbours(train, labels, test, k, check)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    found = Seen()
    monkeypatch.setattr(probes, "fit_probe", found.fit)
    monkeypatch.setattr(neighbours, "nearest_neighbours", found.vote)
    return found


def test_readers_learn_from_the_tasks_they_may_see(config: Config, stream: Stream, seen: Seen) -> None:
    evaluator, network = Evaluator(config, stream, Parallel()), Network(config, 10)
    first = {c for task in stream.tasks[:2] for c in task.classes}
    after = evaluator.row(network, 1, READERS).accuracies
    assert [classes for classes, _, _ in seen.probes] == [first, set(range(10))]
    assert seen.neighbours == [(first, seen.probes[0][1], 7)]
    for reader in ("classifier", "linear_probe_seen", "knn"):
        assert [value is None for value in after[reader]] == [False, False, True, True, True], "classes never seen"
    assert all(value is not None and value > 0.5 for value in after["linear_probe_all"])
    seen.probes.clear()
    row = evaluator.row(network, -1, READERS).accuracies
    assert [count for _, count, _ in seen.probes] == [1438], "the same images are probed once"
    assert row["linear_probe_seen"] == row["linear_probe_all"] == after["linear_probe_all"]


def test_regularisation_is_chosen_without_any_test_image(config: Config, stream: Stream, seen: Seen) -> None:
    split = stream.source.test
    noise = np.random.default_rng(0).integers(0, 256, split.images.shape, dtype=np.uint8)
    other = replace(split, images=noise, labels=split.labels[::-1].copy())
    rows = [
        Evaluator(config, part, Parallel()).row(Network(config, 10), 1, READERS)
        for part in (stream, replace(stream, source=replace(stream.source, test=other)))
    ]
    assert rows[0].accuracies["linear_probe_all"] != rows[1].accuracies["linear_probe_all"]
    mine, theirs = seen.probes[:2], seen.probes[2:]
    for (_, _, one), (_, _, two) in zip(mine, theirs, strict=True):
        assert one.regularisation == two.regularisation
        assert torch.equal(one.weights, two.weights)


def test_images_without_a_label_teach_no_reader(config: Config, stream: Stream, seen: Seen) -> None:
    labels = stream.source.train.labels.copy()
    labels[::2] = -1
    source = replace(stream.source, train=replace(stream.source.train, labels=labels))
    Evaluator(config, replace(stream, source=source), Parallel()).row(Network(config, 10), -1, READERS)
    for classes, count, *_ in (*seen.probes, *seen.neighbours):
        assert (classes, count) == (set(range(10)), 719)
    source = replace(stream.source, train=replace(stream.source.train, labels=np.full_like(labels, -1)))
    with pytest.raises(ConfigError, match=r"eval.readers: .* no training image of task 0 has a label"):
        Evaluator(config, replace(stream, source=source), Parallel())


@pytest.mark.parametrize(("chosen", "images"), [(READERS, [1438, 359]), (("classifier",), [359])])
def test_features_are_extracted_once_and_only_where_needed(
    chosen: tuple[str, ...], images: list[int], config: Config, stream: Stream
) -> None:
    network, batches = Network(config, 10), []
    network.encoder.register_forward_hook(lambda module, inputs, output: batches.append(len(output)))
    checks: list[int] = []
    Evaluator(config, stream, Parallel()).row(network, 4, chosen, lambda: checks.append(len(batches)))
    assert batches == [min(BATCH, count - start) for count in images for start in range(0, count, BATCH)]
    assert checks == list(range(len(batches))), "a stop is noticed before each batch"


@pytest.mark.parametrize("reader", ["linear_probe_seen", "linear_probe_all", "knn"])
def test_a_reader_that_works_for_long_can_be_stopped(reader: str, config: Config, stream: Stream) -> None:
    def asked() -> None:
        raise Stopped("SIGTERM")

    with pytest.raises(Stopped, match="SIGTERM"):
        Evaluator(config, stream, Parallel()).row(Network(config, 10), 0, (reader,), check_alone=asked)
