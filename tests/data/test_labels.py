"""Available labels: balanced, seeded, nested, and hidden from everything that must not use them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kaizen.data.labels import visible_labels

labels_of_any_kind = st.lists(st.integers(-1, 3), max_size=60).map(lambda values: np.array(values, dtype=np.int64))
fractions = st.floats(0, 1)


@given(labels_of_any_kind, fractions, st.integers(0, 2**31 - 1))
@settings(deadline=None)
def test_each_class_keeps_its_part_and_at_least_one(labels: np.ndarray, fraction: float, seed: int) -> None:
    visible = visible_labels(labels, fraction, seed)
    assert (visible[visible >= 0] == labels[visible >= 0]).all(), "a label is kept or hidden, never changed"
    for label in range(4):
        count = (labels == label).sum()
        expected = 0 if fraction == 0 else max(1, round(fraction * count))
        assert (visible == label).sum() == min(count, expected)


@given(labels_of_any_kind, fractions, fractions, st.integers(0, 1000))
@settings(deadline=None)
def test_a_larger_fraction_keeps_all_labels_of_a_smaller_one(
    labels: np.ndarray, one: float, two: float, seed: int
) -> None:
    few, many = (visible_labels(labels, fraction, seed) >= 0 for fraction in sorted((one, two)))
    assert (many | ~few).all()


def test_all_and_none() -> None:
    labels = np.array([0, 1, -1, 1])
    assert visible_labels(labels, 1.0, 0).tolist() == [0, 1, -1, 1]
    assert visible_labels(labels, 0.0, 0).tolist() == [-1] * 4
    assert labels.tolist() == [0, 1, -1, 1], "the true labels are unchanged"


def test_the_choice_is_seeded_and_each_class_has_its_own() -> None:
    labels = np.repeat([0, 1], 100)
    kept = [visible_labels(labels, 0.5, seed) >= 0 for seed in (0, 0, 1)]
    assert (kept[0] == kept[1]).all()
    assert (kept[0] != kept[2]).any()
    assert (kept[0][:100] != kept[0][100:]).any()
    # 50 of 100 are kept; of the first 50 images 25 are expected, give or take 2.5.
    assert all(15 <= part.sum() <= 35 for part in (kept[0][:50], kept[0][100:150]))


@pytest.mark.parametrize("images", [1, 100])
def test_the_labels_of_one_class_do_not_depend_on_the_others(images: int) -> None:
    alone = np.repeat([-1, 1], 100)
    beside = alone.copy()
    beside[:images] = 0
    one, two = (visible_labels(labels, 0.3, 7) == 1 for labels in (alone, beside))
    assert (one == two).all()
