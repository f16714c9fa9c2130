"""Metrics of the accuracy matrix: hand computations, and properties of any matrix."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kaizen.evaluation.metrics import DEFINITIONS, cannot_name, mean, summarize

MATRIX = [[0.8, 0.1, 0.0], [0.5, 0.9, 0.2], [0.6, 0.4, 0.7]]
UNTRAINED = [0.05, 0.15, 0.1]


def test_worked_by_hand() -> None:
    assert summarize(MATRIX, UNTRAINED) == pytest.approx(
        {
            "final_accuracy": (0.6 + 0.4 + 0.7) / 3,
            "continual_accuracy": (0.8 + (0.5 + 0.9) / 2 + (0.6 + 0.4 + 0.7) / 3) / 3,
            "forgetting": ((0.8 - 0.6) + (0.9 - 0.4)) / 2,
            "forgetting_all_rows": ((0.8 - 0.6) + (0.9 - 0.4)) / 2,
            "backward_transfer": ((0.6 - 0.8) + (0.4 - 0.9)) / 2,
            "forward_transfer": ((0.1 - 0.15) + (0.2 - 0.1)) / 2,
            "learning_accuracy": (0.8 + 0.9 + 0.7) / 3,
        }
    )


def test_the_best_accuracy_may_stand_before_the_task_or_long_after_it() -> None:
    matrix = [[0.2, 0.9, 0.0], [0.6, 0.5, 0.0], [0.4, 0.3, 1.0]]
    assert summarize(matrix, UNTRAINED)["forgetting"] == pytest.approx(((0.6 - 0.4) + (0.9 - 0.3)) / 2)


def test_forgetting_over_all_rows_is_zero_where_a_task_is_best_at_the_end() -> None:
    matrix = [[0.5, 0.1, 0.0], [0.6, 0.8, 0.0], [0.9, 0.7, 1.0]]
    found = summarize(matrix, UNTRAINED)
    assert found["forgetting"] == pytest.approx(((0.6 - 0.9) + (0.8 - 0.7)) / 2)
    assert found["forgetting_all_rows"] == pytest.approx((0 + (0.8 - 0.7)) / 2)


def mammoth_forgetting(matrix: list[list[float]]) -> float:
    """By loops: for each task but the last, the best of its column minus its last entry."""
    total = 0.0
    for task in range(len(matrix) - 1):
        best = matrix[0][task]
        for row in matrix:
            best = row[task] if row[task] > best else best
        total += best - matrix[-1][task]
    return total / (len(matrix) - 1)


def test_an_unfinished_run_and_one_task_have_nulls() -> None:
    assert set(summarize([], UNTRAINED).values()) == {None}
    assert set(summarize(MATRIX[:2], UNTRAINED).values()) == {None}
    one = summarize([[0.7]], [0.1])
    assert one == {
        **dict.fromkeys(DEFINITIONS),
        "final_accuracy": 0.7,
        "continual_accuracy": 0.7,
        "learning_accuracy": 0.7,
    }
    assert summarize(MATRIX, None)["forward_transfer"] is None


def test_a_cell_of_untaught_classes_counts_as_zero_and_leaves_no_forward_transfer() -> None:
    zeros = [[0.8, 0.0, 0.0], [0.5, 0.9, 0.0], [0.6, 0.0, 0.7]]
    nulls = [[0.8, None, None], [0.5, 0.9, None], [0.6, None, 0.7]]
    assert summarize(nulls, UNTRAINED) == {**summarize(zeros, UNTRAINED), "forward_transfer": None}
    assert summarize(zeros, [None, *UNTRAINED[1:]])["forward_transfer"] is not None, "task 0's is not used"
    assert summarize(zeros, [0.1, None, 0.1])["forward_transfer"] is None
    assert mean([0.5, None]) == 0.25


def test_a_row_of_nothing_leaves_null_the_metrics_that_need_it() -> None:
    nothing = [None, None, None]
    assert set(summarize([nothing] * 3, nothing).values()) == {None}
    first = summarize([nothing, *MATRIX[1:]], UNTRAINED)
    assert first == {**dict.fromkeys(DEFINITIONS), "final_accuracy": pytest.approx((0.6 + 0.4 + 0.7) / 3)}
    assert set(summarize([*MATRIX[:2], nothing], UNTRAINED).values()) == {None}


@pytest.mark.parametrize(
    ("taught", "asked", "expected"),
    [({0, 1}, {2, 3}, True), ({0, 1}, {1, 2}, False), (set(), {0}, False), ({0}, set(), False)],
    ids=["other classes", "one of them", "taught nothing, it guesses", "nothing is known about the images"],
)
def test_a_reader_can_name_what_it_was_taught(taught: set[int], asked: set[int], expected: bool) -> None:
    assert cannot_name(taught, asked) == expected


def square(side: int) -> st.SearchStrategy[list[list[float]]]:
    row = st.lists(st.floats(0, 1), min_size=side, max_size=side)
    return st.lists(row, min_size=side, max_size=side)


@given(st.integers(2, 6).flatmap(square))
def test_bounds_and_relations_hold_for_any_matrix(matrix: list[list[float]]) -> None:
    found = summarize(matrix, [0.0] * len(matrix))
    assert set(found) == set(DEFINITIONS)
    for name in ("final_accuracy", "continual_accuracy", "learning_accuracy", "forward_transfer"):
        assert 0 <= found[name] <= 1
    assert -1 <= found["forgetting"] <= 1
    assert found["forgetting_all_rows"] == pytest.approx(mammoth_forgetting(matrix), abs=1e-12)
    assert 0 <= found["forgetting_all_rows"] <= 1
    assert found["forgetting_all_rows"] >= found["forgetting"] - 1e-12
    assert found["forgetting"] >= -found["backward_transfer"] - 1e-12, "the best is at least the one after the task"
