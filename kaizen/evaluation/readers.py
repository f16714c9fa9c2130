"""Readers of frozen features (n, d): a converged linear probe, and weighted nearest neighbours.

Neither sees a test label; the probe's regularisation is chosen on held-out training features alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kaizen.data.random import Purpose, fold, permutation
from kaizen.evaluation.features import wide

Check = Callable[[], None]

REGULARISATIONS = tuple(10.0**-power for power in range(6))
"""Weights of the L2 term to try, strongest first; scikit-learn's C is 1 / (weight x n)."""
HELD_OUT = 5
"""One in this many training images of a class is held out to choose the regularisation."""
TOLERANCE, TRIAL_TOLERANCE, STEPS = 1e-6, 1e-4, 2000
"""Largest entry of the gradient at which the probe has converged, the same for choosing a regularisation, and the
maximum number of iterations of the solver. Coordinates are scaled so that the loss curves by about 1 at most."""
TEMPERATURE = 0.07
SIMILARITIES = 2**24
"""Maximum number of similarities in memory at a time."""


@dataclass(frozen=True)
class LinearProbe:
    """Multinomial logistic regression on standardised features.

    mean, std: float64 (d,) of the training features; weights: float64 (d + 1, c), the last row the bias; classes: int64
    (c,), those with a training image; regularisation: weight of 0.5 x the squared norm, added to mean cross-entropy;
    gradient: its largest entry where the solver ended; at most TOLERANCE if it converged.
    """

    mean: Tensor
    std: Tensor
    weights: Tensor
    classes: Tensor
    regularisation: float
    gradient: float

    def predict(self, features: Tensor) -> Tensor:
        """Features (n, d) -> labels int64 (n,)."""
        scores = _affine((wide(features) - self.mean) / self.std, self.weights)
        return self.classes[scores.argmax(dim=1)]


def fit_probe(features: Tensor, labels: Tensor, seed: int, check: Check = lambda: None) -> LinearProbe:
    """A probe of features (n, d) and labels int64 (n,), deterministic.

    Its regularisation has the best accuracy on a held-out fifth of them (the strongest of equals); the probe is then
    fitted to all. `check` is called before each pass of the solver over the features, and may raise.
    """
    doubles = wide(features)
    mean, std = doubles.mean(dim=0), doubles.std(dim=0, correction=0)
    # A constant feature has no spread to divide by, except for rounding.
    std = torch.where(std > 1e-7 * mean.abs(), std, 1.0)
    inputs = (doubles - mean) / std
    del doubles  # copies of all features are large
    classes, targets = labels.to(inputs.device).unique(return_inverse=True)
    # Along the principal axes of the features, the solver can distinguish steep directions from flat ones.
    spread, axes = torch.linalg.eigh(inputs.T @ inputs / len(inputs))
    inputs = inputs @ axes
    problem = _Problem(inputs, targets, spread.clamp(min=0))
    regularisation, start = _choose(problem, seed, check)
    weights, gradient = problem.solve(regularisation, start, TOLERANCE, check)
    weights = torch.cat([axes @ weights[:-1], weights[-1:]])
    return LinearProbe(mean, std, weights, classes, regularisation, gradient)


def _choose(problem: "_Problem", seed: int, check: Check) -> tuple[float, Tensor]:
    """The best regularisation and its weights; each fit starts from the previous one."""
    inputs, targets = problem.inputs, problem.targets
    held = held_out(targets, seed)
    kept = ~held
    if not held.any():  # no class has two images, so none can be held out
        held = kept
    trial = _Problem(inputs[kept], targets[kept], problem.spread)
    weights = inputs.new_zeros(inputs.shape[1] + 1, int(targets.max()) + 1)
    best, found = -1.0, (REGULARISATIONS[0], weights)
    for regularisation in REGULARISATIONS:
        weights, _ = trial.solve(regularisation, weights, TRIAL_TOLERANCE, check)
        right = _affine(inputs[held], weights).argmax(dim=1) == targets[held]
        accuracy = float(right.double().mean())
        if accuracy > best:
            best, found = accuracy, (regularisation, weights)
    return found


def held_out(targets: Tensor, seed: int) -> Tensor:
    """Mask bool (n,) of the held-out targets int64 (n,): a seeded fifth per class, at least one of two or more."""
    order = permutation(len(targets), fold(seed, Purpose.EVALUATION)).to(targets.device)
    held = torch.zeros_like(targets, dtype=torch.bool)
    for target in targets.unique():
        members = order[targets[order] == target]
        count = max(len(members) // HELD_OUT, 1) if len(members) > 1 else 0
        held[members[:count]] = True
    return held


@dataclass(frozen=True)
class _Problem:
    """Least mean cross-entropy + 0.5 x regularisation x squared norm of the weights (the bias is free).

    inputs: (n, d) along the axes of the features' spread; targets: int64 (n,); spread: (d,) mean squares of all
    inputs, of which these may be a part.
    """

    inputs: Tensor
    targets: Tensor
    spread: Tensor

    def solve(self, regularisation: float, start: Tensor, tolerance: float, check: Check) -> tuple[Tensor, float]:
        """Weights (d + 1, c) and the largest entry of the gradient there.

        The problem is convex; L-BFGS on all images at once finds its only minimum. Each direction is scaled by its
        maximum curvature (Böhning 1992: half its spread, plus the regularisation), which takes a third of the
        iterations.
        """
        inputs, targets = self.inputs, self.targets
        steepness = torch.cat([0.5 * self.spread + regularisation, self.spread.new_ones(1)])
        unit = steepness.rsqrt().unsqueeze(1)
        scaled = (start / unit).requires_grad_()
        solver = torch.optim.LBFGS(
            [scaled],
            max_iter=STEPS,
            tolerance_grad=tolerance,
            tolerance_change=0,
            history_size=50,
            line_search_fn="strong_wolfe",
        )
        rows = torch.arange(len(targets), device=targets.device)

        @torch.no_grad()
        def loss() -> Tensor:
            check()
            weights = scaled * unit
            # The gradient by hand takes half the memory of autograd's.
            log_p = _affine(inputs, weights).log_softmax(dim=1)
            value = 0.5 * regularisation * weights[:-1].square().sum() - log_p[rows, targets].mean()
            errors = log_p.exp_()
            errors[rows, targets] -= 1
            errors /= len(targets)
            slope = inputs.T @ errors + regularisation * weights[:-1]
            scaled.grad = torch.cat([slope, errors.sum(dim=0, keepdim=True)]) * unit
            return value

        solver.step(loss)
        loss()
        assert scaled.grad is not None
        return scaled.detach() * unit, float(scaled.grad.abs().max())


def _affine(inputs: Tensor, weights: Tensor) -> Tensor:
    return torch.addmm(weights[-1], inputs, weights[:-1])


def nearest_neighbours(train: Tensor, labels: Tensor, test: Tensor, k: int, check: Check = lambda: None) -> Tensor:
    """Labels int64 (m,) that the k nearest of train (n, d) with labels int64 (n,) vote for, for each of test (m, d).

    Nearest by cosine, votes weighted by exp(cosine / 0.07) (Wu et al. 2018, arXiv 1805.01978); k is cut to n. `check`
    is called before each chunk, and may raise.
    """
    train, labels = F.normalize(train, dim=1), labels.to(train.device)
    k, classes = min(k, len(train)), int(labels.max()) + 1
    guesses = []
    for part in F.normalize(test, dim=1).split(max(1, SIMILARITIES // len(train))):
        check()
        cosines, neighbours = (part @ train.T).topk(k, dim=1)
        # Subtracting 1 in the exponent changes no vote's share and keeps the sums small.
        votes = cosines.new_zeros(len(part), classes)
        votes.scatter_add_(1, labels[neighbours], ((cosines - 1) / TEMPERATURE).exp())
        guesses.append(votes.argmax(dim=1))
    return torch.cat(guesses)
