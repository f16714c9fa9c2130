"""What the reader `statistics` misses: LDA after the last task with carried and with true means and covariance.

usage: python tests/statistics_gap.py RUN [RUN ...], finished runs; prints final accuracies in %, a line per kind.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from kaizen.cli.resolve import resolve
from kaizen.data.load import load_stream
from kaizen.evaluation.features import extract_features, wide
from kaizen.evaluation.readers.logistic import fit_probe
from kaizen.model.statistics import FILE, Statistics
from kaizen.model.teacher import read_network
from kaizen.parallel import Parallel
from kaizen.run.places import task_directory
from kaizen.training.defaults import Facts, suit

COLUMNS = ("carried", "true means", "true covariance", "both true", "of each class", "linear probe")


def gap(run: Path, parallel: Parallel) -> list[float]:
    """Final accuracies in %, in the order of COLUMNS; `of each class`: Gaussians with a true covariance each."""
    config = resolve(str(run / "config.yaml"), {})[1]
    stream = load_stream(config)
    config, source = suit(config, Facts.of(stream))[0], stream.source
    folder = task_directory(run, len(stream.tasks) - 1)
    network = read_network(folder / "student.safetensors", config).to(parallel.device).eval()
    ids = np.concatenate([task.train for task in stream.tasks])
    tests = np.concatenate([task.test for task in stream.tasks])
    sets = [(source.train.images, ids), (source.test.images, tests)]
    moments = stream.moments[0].to(parallel.device), stream.moments[1].to(parallel.device)
    found = wide(extract_features(network.encoder, sets, moments, parallel)).cpu()
    train, test, labels = found[: len(ids)], found[len(ids) :], torch.from_numpy(stream.labels[ids])

    def accuracy(guesses: Tensor) -> float:
        right = (guesses.numpy() == source.test.labels[tests]).astype(float)
        parts = np.split(right, np.cumsum([len(task.test) for task in stream.tasks])[:-1])
        return 100 * float(np.mean([part.mean() for part in parts]))

    def lda(means: Statistics, covariance: Statistics) -> float:
        held = Statistics(means.classes, means.counts, means.means, covariance.covariance)
        weight, bias = held.classifier(config.statistics.shrinkage)
        return accuracy(held.classes[(test @ weight.T + bias).argmax(dim=1)])

    kept, true = Statistics.read(folder / f"{FILE}.safetensors", train.shape[1]), Statistics.measured(train, labels)
    pairs = [lda(kept, kept), lda(true, kept), lda(kept, true), lda(true, true)]
    probe = fit_probe(train.float(), labels, config.run.seed).predict(test.float())
    return [*pairs, accuracy(_quadratic(train, labels, test, true, config.statistics.shrinkage)), accuracy(probe)]


def _quadratic(train: Tensor, labels: Tensor, test: Tensor, true: Statistics, shrinkage: float) -> Tensor:
    """Guesses by a Gaussian for each class, a third of whose covariance is its own and the rest the common one."""
    scores = []
    for place, label in enumerate(true.classes.tolist()):
        own = Statistics.measured(train[labels == label], labels[labels == label]).covariance
        mixed = Statistics(true.classes, true.counts, true.means, own / 3 + true.covariance * 2 / 3).shrunk(shrinkage)
        root = torch.linalg.cholesky(mixed)
        distance = torch.linalg.solve_triangular(root, (test - true.means[place]).T, upper=False).square().sum(dim=0)
        scores.append(-0.5 * distance - root.diagonal().log().sum())
    return true.classes[torch.stack(scores).argmax(dim=0)]


if __name__ == "__main__":
    parallel = Parallel()
    rows = [gap(Path(run), parallel) for run in sys.argv[1:]]
    for column, *values in zip(COLUMNS, *rows, strict=True):
        spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
        print(f"{column:16} {np.mean(values):.1f}{spread}   " + " ".join(f"{value:.1f}" for value in values))
