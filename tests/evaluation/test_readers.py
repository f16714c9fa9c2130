"""Readers: against scikit-learn on real features, against hand computations, and the data that each may see."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from kaizen.cli.resolve import resolve
from kaizen.config.schema import ClassifierConfig, Config
from kaizen.data.load import Stream, load_stream
from kaizen.errors import ConfigError, Stopped, TrainingFailed
from kaizen.evaluation import evaluator as evaluator_module
from kaizen.evaluation import features as features_module
from kaizen.evaluation import readers
from kaizen.evaluation.evaluator import BATCH, Evaluator
from kaizen.evaluation.features import rankme
from kaizen.evaluation.readers import Check, LinearProbe, fit_probe, held_out, nearest_neighbours
from kaizen.model.learner import Network
from kaizen.parallel import Parallel

READERS = ("classifier", "linear_probe_seen", "linear_probe_all", "knn")


@pytest.fixture(scope="module")
def config(cache: str) -> Config:
    return resolve("digits", {"data.cache_dir": cache, "encoder.width": "8", "eval.knn_k": "7"})[1]


@pytest.fixture(scope="module")
def stream(config: Config) -> Stream:
    return load_stream(config)


Digits = tuple[Tensor, Tensor, Tensor, np.ndarray]


@pytest.fixture(scope="module")
def digits(config: Config, stream: Stream) -> Digits:
    """Features of an untrained network and labels: of the training images, task by task, and of the test images."""
    found = Evaluator(config, stream, Parallel())
    ids = np.concatenate(found.labelled)
    torch.manual_seed(0)
    train, test = found._features(Network(config, 10), ids, lambda: None)
    test_ids = np.concatenate([task.test for task in stream.tasks])
    return train, torch.from_numpy(stream.source.train.labels[ids]), test, stream.source.test.labels[test_ids]


@pytest.mark.parametrize("weak", [False, True], ids=["chosen", "weak"])
@pytest.mark.parametrize("count", [580, 1438], ids=["two tasks", "all"])
def test_the_probe_agrees_with_scikit_learn(
    count: int, weak: bool, digits: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, labels, test, truth = digits
    if weak:  # where a solver that stops early is furthest from the minimum
        monkeypatch.setattr(readers, "REGULARISATIONS", readers.REGULARISATIONS[-1:])
    probe = fit_probe(train[:count], labels[:count], seed=0)
    assert probe.gradient <= readers.TOLERANCE
    scaler = StandardScaler().fit(train[:count].double())
    theirs = LogisticRegression(C=1 / (probe.regularisation * count), max_iter=20000, tol=1e-7)
    theirs.fit(scaler.transform(train[:count].double()), labels[:count])
    mine, expected = probe.predict(test).numpy(), theirs.predict(scaler.transform(test.double()))
    assert float((expected == truth).mean()) > 0.6 * len(probe.classes) / 10, "features that separate the classes"
    assert abs((mine == truth).mean() - (expected == truth).mean()) <= 0.005
    assert (mine == expected).mean() > 0.99


@pytest.mark.parametrize("k", [1, 20])
def test_nearest_neighbours_agree_with_scikit_learn(k: int, digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels, test, truth = digits
    theirs = KNeighborsClassifier(k, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    expected = theirs.fit(train, labels).predict(test)
    mine = nearest_neighbours(train, labels, test, k)
    assert abs((mine.numpy() == truth).mean() - (expected == truth).mean()) <= 0.005
    assert (mine.numpy() == expected).mean() > 0.99
    monkeypatch.setattr(readers, "SIMILARITIES", 10 * len(train))
    assert torch.equal(nearest_neighbours(train, labels, test, k), mine), "ten rows at a time"


def test_the_probe_worked_by_hand() -> None:
    features, labels = torch.tensor([[3.0], [5.0]]).repeat(10, 1), torch.tensor([7, 2]).repeat(10)
    probe = fit_probe(features, labels, seed=0)
    assert (probe.mean.item(), probe.std.item(), probe.regularisation) == (4, 1, 1), "the strongest of equals"
    assert probe.classes.tolist() == [2, 7]
    weight = probe.weights[0, 0].item()
    # At +-1 the minimum has weight x regularisation = 1 - probability of the true class.
    assert weight == pytest.approx(1 - 1 / (1 + math.exp(-2 * weight)), abs=2e-4)
    assert probe.weights[0].sum().item() == pytest.approx(0, abs=1e-9)
    assert probe.predict(torch.tensor([[3.9], [4.1], [99.0]])).tolist() == [7, 2, 2]


@pytest.mark.parametrize("seed", range(3))
def test_regularisation_follows_what_held_out_images_say(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(400) % 4
    signal = 3 * torch.nn.functional.one_hot(labels, 100).double()
    # With many features and wrong labels, weak regularisation learns the wrong labels by heart.
    wrong = torch.rand(400, generator=generator) < 0.4
    noisy_labels = torch.where(wrong, torch.randint(4, (400,), generator=generator), labels)
    features = signal + torch.randn(400, 100, generator=generator, dtype=torch.float64)
    noisy = fit_probe(features, noisy_labels, seed=0)
    # A class between two classes on a line is found only with weak regularisation.
    line = torch.rand(400, 1, generator=generator, dtype=torch.float64)
    clean = fit_probe(line, (line[:, 0] * 8).long(), seed=0)
    assert noisy.regularisation >= 0.1
    assert clean.regularisation <= 0.001


@pytest.mark.parametrize(("k", "expected"), [(1, 4), (3, 4), (4, 0), (99, 0)])
def test_votes_worked_by_hand(k: int, expected: int) -> None:
    # Cosines 1, 0.96, 0.96, 0.8 with labels 4, 0, 0, 0: weights relative to the first 1, 0.565, 0.565, 0.057.
    train = torch.tensor([[2.0, 0.0], [0.96, 0.28], [0.96, -0.28], [0.4, 0.3]])
    labels = torch.tensor([4, 0, 0, 0]) if k > 3 else torch.tensor([4, 0, 1, 0])
    assert nearest_neighbours(train, labels, torch.tensor([[0.5, 0.0]]), k).tolist() == [expected]


@pytest.mark.parametrize(("weight", "expected"), [(0.52, 1), (0.48, 2)])
def test_a_vote_weighs_by_the_exponential_of_its_cosine_over_0_07(weight: float, expected: int) -> None:
    angle = math.acos(1 + 0.07 * math.log(weight))
    train = torch.tensor([[1.0, 0.0], *([math.cos(angle), sign * math.sin(angle)] for sign in (1, -1))])
    # Two such votes against one of weight 1.
    assert nearest_neighbours(train, torch.tensor([2, 1, 1]), torch.tensor([[3.0, 0.0]]), 20).tolist() == [expected]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.integers(0, 99))
def test_a_fifth_of_each_class_is_held_out(labels: list[int], seed: int) -> None:
    targets = torch.tensor(labels)
    held = held_out(targets, seed)
    assert torch.equal(held, held_out(targets, seed))
    for label in set(labels):
        count = labels.count(label)
        assert int(held[targets == label].sum()) == (max(count // 5, 1) if count > 1 else 0)


def test_another_seed_holds_out_other_images() -> None:
    targets = torch.zeros(50, dtype=torch.int64)
    assert not torch.equal(held_out(targets, 0), held_out(targets, 1))


@pytest.mark.parametrize("labels", [[3, 3, 3, 3], [0, 1, 2, 3], [1]])
def test_features_that_never_change_and_few_images_give_no_nan(labels: list[int]) -> None:
    features = torch.tensor([[0.0, 0.1, float(i)] for i in range(len(labels))])
    probe = fit_probe(features, torch.tensor(labels), seed=0)
    assert torch.isfinite(probe.weights).all()
    assert set(probe.predict(features).tolist()) <= set(labels)
    assert set(nearest_neighbours(0 * features, torch.tensor(labels), features, 20).tolist()) <= set(labels)


def test_features_that_are_not_finite_end_the_run(config: Config, stream: Stream) -> None:
    network = Network(config, 10)
    network.encoder.conv1.weight.data[0] = float("nan")
    with pytest.raises(TrainingFailed, match="features of some images"):
        Evaluator(config, stream, Parallel()).row(network, 0, ("classifier",))


def test_a_solver_that_did_not_converge_is_told(
    config: Config, stream: Stream, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(readers, "STEPS", 1)
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


def test_rankme_is_the_exponential_of_the_entropy_of_singular_values() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 7, generator=generator) * torch.arange(7)
    values = np.linalg.svd(features.double().numpy(), compute_uv=False)
    shares = values[:6] / values.sum()
    assert rankme(features) == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-9)
    assert rankme(3 * torch.eye(5)) == pytest.approx(5)
    assert rankme(torch.ones(9, 4)) == pytest.approx(1, abs=1e-6), "one direction, whatever rounding adds"
    assert rankme(torch.randn(2, 50, generator=generator)) < 2.001
    assert rankme(torch.zeros(9, 4)) == 0


def test_rankme_of_many_images_looks_at_evenly_spaced_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "RANK_IMAGES", 5)
    rows = torch.eye(12)
    assert rankme(rows) == pytest.approx(4), "every third"
    assert rankme(rows[:10]) == pytest.approx(5)


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
    monkeypatch.setattr(evaluator_module, "fit_probe", found.fit)
    monkeypatch.setattr(evaluator_module, "nearest_neighbours", found.vote)
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
