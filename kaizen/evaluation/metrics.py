"""Metrics of an accuracy matrix A[t][i]: accuracy on task i's test images after training task t.

All tasks have equal weight. Libraries define forgetting in different ways; DEFINITIONS contains those used here.
"""

from collections.abc import Collection, Sequence, Set

Row = Sequence[float | None]
"""Accuracies per task as fractions; None: see `cannot_name`."""

DEFINITIONS = {
    "final_accuracy": "mean over tasks after the last task",
    "continual_accuracy": "mean over t of the mean over tasks i <= t after task t",
    "forgetting": "mean over i < T-1 of the best accuracy before the last task minus the final one",
    "forgetting_all_rows": "as forgetting, with the best accuracy after any task, the last one included (as in "
    "mammoth); never negative",
    "backward_transfer": "mean over i < T-1 of the final accuracy minus the accuracy right after task i",
    "forward_transfer": "mean over i >= 1 of the accuracy before task i was trained minus the untrained network's",
    "learning_accuracy": "mean over i of the accuracy right after task i",
}
PROTOCOLS = {
    "classifier": "the network's own head, trained with it on the labels that the run may see; "
    "the untrained network's head guesses",
    "statistics": "linear discriminant analysis of class means and a covariance, measured with the labels that the run "
    "may see and carried from encoder to encoder",
    "linear_probe_seen": "logistic regression on frozen features of the training images of the tasks trained so far, "
    "with true labels; for the untrained network: of all tasks",
    "linear_probe_all": "logistic regression on frozen features of the training images of all tasks, with true labels; "
    "CaSSLe probes with the same labels, but during training and on augmented images, so expect more here",
    "knn": "vote of the nearest training images of the tasks trained so far, with true labels; "
    "for the untrained network: of all tasks",
    "memory_probe": "logistic regression on frozen features of the images in the replay memory, with the labels that "
    "the run may see",
    "ncm": "nearest class mean, by cosine, of normalised features of the images in the replay memory, with the labels "
    "that the run may see (as in iCaRL)",
}
"""Training data of each reader, in every row."""


def cannot_name(taught: Set[int], asked: Set[int]) -> bool:
    """Whether a reader taught these classes is wrong on every image of the classes asked for, whatever the features.

    A reader that was taught nothing guesses, and may be right.
    """
    return bool(taught) and bool(asked) and not taught & asked


def summarize(matrix: Sequence[Row], untrained: Row | None, gone: Collection[int] = ()) -> dict[str, float | None]:
    """Metrics by name (see DEFINITIONS); None if they are undefined, for one task or an unfinished run.

    A cell that is None counts as 0, as every prediction for it is wrong; the forward transfer is None then. In a row of
    None alone the reader had nothing to learn from; metrics that need it are None, and so are those that need a row of
    `gone`, in which test images of earlier tasks were no longer there. `untrained` is the row of the untrained network.
    """
    found: dict[str, float | None] = dict.fromkeys(DEFINITIONS)
    tasks = len(matrix[0]) if matrix else 0
    if not matrix or len(matrix) < tasks:
        return found
    rows = [[accuracy or 0.0 for accuracy in row] for row in matrix]
    last = rows[-1]
    empty = [t in gone or all(accuracy is None for accuracy in row) for t, row in enumerate(matrix)]
    if not empty[-1]:
        found["final_accuracy"] = mean(last)
    if any(empty):
        return found
    found["continual_accuracy"] = mean([mean(row[: t + 1]) for t, row in enumerate(rows)])
    found["learning_accuracy"] = mean([rows[i][i] for i in range(tasks)])
    if tasks > 1:
        earlier = range(tasks - 1)
        found["forgetting"] = mean([max(row[i] for row in rows[:-1]) - last[i] for i in earlier])
        found["forgetting_all_rows"] = mean([max(row[i] for row in rows) - last[i] for i in earlier])
        found["backward_transfer"] = mean([last[i] - rows[i][i] for i in earlier])
        if untrained is not None:
            pairs = [(row[i], untrained[i]) for i, row in enumerate(matrix[:-1], start=1)]
            gains = [before - start for before, start in pairs if before is not None and start is not None]
            found["forward_transfer"] = mean(gains) if len(gains) == len(pairs) else None
    return found


def mean(values: Row) -> float:
    """Mean of accuracies or of their differences; None counts as 0."""
    return sum(value or 0.0 for value in values) / len(values)
