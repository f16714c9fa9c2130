"""The replay memory: the images that it keeps, for every policy and budget."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from scipy.stats import chi2

from kaizen.data.replay import Features, Memory, choose, herding_order

LABELS = np.array([0, 1, 0, 1, 0, 2, 2, 2, 2, -1] * 4)
IMAGES = np.arange(len(LABELS), dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 2, 2), dtype=np.uint8)


FEATURES = np.random.default_rng(0).normal(size=(len(LABELS), 5)).astype(np.float32)


def remember(memory: Memory, ids: np.ndarray, features: Features = FEATURES.__getitem__, **settings: Any) -> Memory:
    return choose(memory, LABELS, ids, features=features, **settings).applied(memory, IMAGES, LABELS, settings["task"])


def kept(policy: str, budget: tuple[str, float], seed: int = 0) -> Memory:
    memory = Memory.empty(3, 2)
    for task, classes in enumerate(([0, 1], [2, -1])):
        ids = np.flatnonzero(np.isin(LABELS, classes))
        settings = {"task": task, "seed": seed, "policy": policy, "budget": budget}
        memory = remember(memory, ids, **settings)
    return memory


def counts(memory: Memory) -> dict[int, int]:
    labels, numbers = memory.labels.unique(return_counts=True)
    return dict(zip(labels.tolist(), numbers.tolist(), strict=True))


@pytest.mark.parametrize("policy", ["random", "first", "herding"])
@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (("per_class", 3), {0: 3, 1: 3, 2: 3, -1: 3}),
        (("per_class", 99), {0: 12, 1: 8, 2: 16, -1: 4}),
        (("fraction", 0.25), {0: 3, 1: 2, 2: 4, -1: 1}),
        (("fraction", 0.01), {0: 1, 1: 1, 2: 1, -1: 1}),
        (("total", 8), {0: 2, 1: 2, 2: 2, -1: 2}),
        (("total", 20), {0: 5, 1: 5, 2: 6, -1: 4}),
    ],
)
def test_budgets(policy: str, budget: tuple[str, float], expected: dict[int, int]) -> None:
    memory = kept(policy, budget)
    found = counts(memory)
    if budget == ("total", 20):
        assert sum(found.values()) == 20
        assert found[-1] == 4
        assert max(found.values()) - min(found[label] for label in (0, 1, 2)) <= 1
    else:
        assert found == expected


@pytest.mark.parametrize(
    ("policy", "budget"), [("random", ("per_class", 3)), ("herding", ("per_class", 3)), ("reservoir", ("total", 15))]
)
def test_rows_belong_together(policy: str, budget: tuple[str, float]) -> None:
    memory = kept(policy, budget)
    assert set(memory.task_ids.tolist()) == {0, 1}
    for image, label, sample, task in zip(*memory.tensors().values(), strict=True):
        assert (image == int(sample)).all()
        assert LABELS[int(sample)] == int(label)
        assert int(task) == (0 if int(label) in (0, 1) else 1)
    assert len(set(memory.sample_ids.tolist())) == len(memory)


def test_first_keeps_the_first_of_each_class_in_dataset_order() -> None:
    memory = kept("first", ("per_class", 2))
    assert memory.sample_ids[memory.labels == 0].tolist() == [0, 2]
    assert memory.sample_ids[memory.labels == 2].tolist() == [5, 6]


def test_random_depends_on_the_seed_alone() -> None:
    one, same, other = (kept("random", ("per_class", 4), seed).sample_ids for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_none_keeps_nothing_and_an_empty_memory_can_be_saved(tmp_path: Path) -> None:
    memory = kept("none", ("per_class", 3))
    assert len(memory) == 0
    save_file(memory.tensors(), tmp_path / "replay.safetensors")
    again = Memory.read(tmp_path / "replay.safetensors", (3, 2, 2), 3)
    assert again.images.shape == (0, 3, 2, 2)
    assert again.images.dtype == torch.uint8


def test_a_total_that_shrinks_keeps_what_it_had_chosen_first() -> None:
    small, large = kept("random", ("total", 8)), kept("random", ("total", 20))
    assert set(small.sample_ids.tolist()) <= set(large.sample_ids.tolist())


def herded(features: np.ndarray, count: int) -> list[int]:
    """Reference herding: for each place, try every remaining row."""
    rows = [row / (np.sqrt((row.astype(np.float64) ** 2).sum()) or 1) for row in features.astype(np.float64)]
    mean = sum(rows) / len(rows)
    chosen: list[int] = []
    for _ in range(count):
        gaps = {}
        for i in set(range(len(rows))) - set(chosen):
            running = sum(rows[j] for j in [*chosen, i]) / (len(chosen) + 1)
            gaps[i] = float(np.linalg.norm(mean - running))
        chosen.append(min(gaps, key=lambda i: (gaps[i], i)))
    return chosen


@given(st.sampled_from([1, *range(3, 10)]), st.integers(1, 4), st.integers(0, 10**6))
@settings(deadline=None)
def test_herding_is_the_greedy_choice_written_out(images: int, width: int, seed: int) -> None:
    # Two images are equally close to their mean, so rounding decides; among more images no two are.
    features = np.random.default_rng(seed).normal(size=(images, width + 1))
    assert herding_order(features, images).tolist() == herded(features, images)


def test_herding_keeps_the_choice_of_each_class_by_its_own_features() -> None:
    memory = kept("herding", ("per_class", 3))
    for label in (0, 1, 2, -1):
        ids = np.flatnonzero(label == LABELS)
        expected = ids[herded(FEATURES[ids], 3)]
        assert memory.sample_ids[memory.labels == label].tolist() == expected.tolist()


def test_herding_looks_at_directions_and_not_at_lengths() -> None:
    features = np.random.default_rng(1).normal(size=(20, 4))
    lengths = np.linspace(0.01, 100, 20)[:, None]
    assert herding_order(features, 20).tolist() == herding_order(features * lengths, 20).tolist()


def test_of_images_that_are_equally_close_the_first_is_taken() -> None:
    features = np.random.default_rng(2).normal(size=(50, 37))[np.arange(200) % 50].astype(np.float32)
    order = herding_order(features, 200).tolist()
    assert sorted(order) == list(range(200))
    for row in range(50):
        places = [order.index(row + copy) for copy in (0, 50, 100, 150)]
        assert places == sorted(places), "of four equal images the one of the lowest index comes first"
    assert herding_order(np.zeros((4, 3)), 4).tolist() == [0, 1, 2, 3]
    settings = {"task": 0, "seed": 0, "policy": "herding", "budget": ("per_class", 2)}
    shuffled = np.array([15, 5, 8, 6, 7])
    memory = remember(Memory.empty(3, 2), shuffled, **settings, features=lambda ids: np.ones((len(ids), 3)))
    assert memory.sample_ids.tolist() == [5, 6]


def test_herding_stays_closer_to_the_mean_than_a_random_choice() -> None:
    rows = np.random.default_rng(3).normal(size=(200, 16)) + 1
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)

    def gap(chosen: np.ndarray) -> float:
        return float(np.linalg.norm(rows[chosen].mean(axis=0) - rows.mean(axis=0)))

    assert gap(herding_order(rows, 10)) < 0.5 * min(
        gap(np.random.default_rng(s).permutation(200)[:10]) for s in range(20)
    )


def test_features_are_asked_for_by_herding_alone() -> None:
    def refuse(ids: np.ndarray) -> np.ndarray:
        raise AssertionError("features cost a pass over the task")

    for policy, budget in (("none", ("total", 4)), ("random", ("total", 4)), ("reservoir", ("total", 4))):
        settings = {"task": 0, "seed": 0, "policy": policy, "budget": budget}
        remember(Memory.empty(3, 2), np.arange(9), **settings, features=refuse)


def streamed(total: int, seed: int, tasks: list[list[int]]) -> list[list[int]]:
    """Sample ids in the reservoir after each task."""
    memory, found = Memory.empty(3, 2), []
    for task, ids in enumerate(tasks):
        settings = {"task": task, "seed": seed, "policy": "reservoir", "budget": ("total", total)}
        memory = remember(memory, np.array(ids), **settings)
        found.append(memory.sample_ids.tolist())
    return found


def test_a_reservoir_is_uniform_over_all_images_seen_whatever_their_task() -> None:
    tasks, total, seeds = [[0, 1], [2, 3, 4, 5, 6, 7, 8], [9, 10, 11]], 4, 3000
    memories = [streamed(total, seed, tasks) for seed in range(seeds)]
    for task, seen in ((1, 9), (2, 12)):
        counts = Counter(i for memory in memories for i in memory[task])
        expected = seeds * total / seen
        statistic = sum((counts[i] - expected) ** 2 / expected for i in range(seen))
        # Draws without replacement vary less than a chi-square, by (seen - total) / (seen - 1).
        statistic *= (seen - 1) / (seen - total)
        assert chi2.cdf(statistic, seen - 1) < 0.9999
        assert chi2.cdf(statistic, seen - 1) > 0.0001, "a random choice has counts that vary"
        pairs = Counter(pair for memory in memories for pair in zip(*[iter(sorted(memory[task]))] * 2, strict=True))
        assert len(pairs) > seen, "images are chosen independently of each other"


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000), st.permutations(range(12)))
@settings(deadline=None)
def test_a_reservoir_is_nested_by_size_and_forgets_for_good(
    small: int, large: int, seed: int, order: list[int]
) -> None:
    small, large = sorted((small, large))
    tasks = [order[:5], order[5:6], order[6:]]
    few, many = streamed(small, seed, tasks), streamed(large, seed, tasks)
    for task in range(3):
        seen = [i for ids in tasks[: task + 1] for i in ids]
        assert few[task] == many[task][:small], "a smaller memory is the beginning of a larger one"
        assert len(many[task]) == min(large, len(seen))
        assert set(many[task]) <= set(seen)
        if task:
            assert set(many[task]) - set(tasks[task]) <= set(many[task - 1]), "removed images never return"
    assert few[2] == streamed(small, seed, [order])[0], "the boundaries of tasks do not matter"


def test_a_reservoir_depends_on_the_seed() -> None:
    assert streamed(6, 0, [list(range(40))]) == streamed(6, 0, [list(range(40))])
    assert streamed(6, 0, [list(range(40))]) != streamed(6, 1, [list(range(40))])
