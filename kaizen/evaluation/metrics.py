"""Metrics of an accuracy matrix A[t][i]: accuracy on task i's test images after training task t.

Tasks weigh equally. Several libraries define forgetting differently; DEFINITIONS says what is meant here.
"""

from collections.abc import Sequence

DEFINITIONS = {
    "final_accuracy": "mean over tasks after the last task",
    "continual_accuracy": "mean over t of the mean over tasks i <= t after task t",
    "forgetting": "mean over i < T-1 of the best accuracy before the last task minus the final one",
    "backward_transfer": "mean over i < T-1 of the final accuracy minus the one right after task i",
    "forward_transfer": "mean over i >= 1 of the accuracy before task i was trained minus the untrained network's",
    "learning_accuracy": "mean over i of the accuracy right after task i",
}


def summarize(matrix: Sequence[Sequence[float]], untrained: Sequence[float] | None) -> dict[str, float | None]:
    """Metrics by name (see DEFINITIONS); None where one task or an unfinished run leaves them undefined.

    Args:
        matrix: A[t][i] for the tasks done, fractions.
        untrained: accuracies of the untrained network.
    """
    found: dict[str, float | None] = dict.fromkeys(DEFINITIONS)
    tasks = len(matrix[0]) if matrix else 0
    if not matrix or len(matrix) < tasks:
        return found
    last = matrix[-1]
    found["final_accuracy"] = _mean(last)
    found["continual_accuracy"] = _mean([_mean(row[: t + 1]) for t, row in enumerate(matrix)])
    found["learning_accuracy"] = _mean([matrix[i][i] for i in range(tasks)])
    if tasks > 1:
        earlier = range(tasks - 1)
        found["forgetting"] = _mean([max(row[i] for row in matrix[:-1]) - last[i] for i in earlier])
        found["backward_transfer"] = _mean([last[i] - matrix[i][i] for i in earlier])
        if untrained is not None:
            found["forward_transfer"] = _mean([matrix[i - 1][i] - untrained[i] for i in range(1, tasks)])
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
