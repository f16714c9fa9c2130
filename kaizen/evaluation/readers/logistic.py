"""Multinomial logistic regression on frozen features (n, d), solved until it has converged.

Its regularisation is chosen on held-out training features alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kaizen.data.random import Purpose, fold, permutation
from kaizen.evaluation.features import wide
from kaizen.evaluation.readers.base import Check

REGULARISATIONS = tuple(10.0**-power for power in range(6))
"""Weights of the L2 term to try, strongest first; scikit-learn's C is 1 / (weight x n)."""
HELD_OUT = 5
"""One in this many training images of a class is held out to choose the regularisation."""
TOLERANCE, TRIAL_TOLERANCE, STEPS = 1e-6, 1e-3, 2000
"""Largest entry of the gradient at which the probe has converged, the same for choosing a regularisation, and the
maximum number of iterations of the solver. Coordinates are scaled so that the loss curves by about 1 at most."""
NEWTON_NUMBERS, NEWTON_ROWS = 2**22, 4096
"""Largest number of second derivatives, classes x (features + 1)^2, up to which Newton's method takes over from L-BFGS
for the last digits, and about the number of images that its preconditioner comes from."""
INNER, OUTER, STALE = 200, 100, 12
"""Maximum number of steps of conjugate gradients, maximum number of Newton's steps, and the steps of conjugate
gradients after which the preconditioner is computed anew."""


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
    solve = problem.polish if len(classes) * (inputs.shape[1] + 1) ** 2 <= NEWTON_NUMBERS else problem.solve
    weights, gradient = solve(regularisation, start, TOLERANCE, check)
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

    def loss(self, regularisation: float, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The loss () at weights (d + 1, c), and the probabilities (n, c)."""
        log_p = _affine(self.inputs, weights).log_softmax(dim=1)
        picked = log_p.gather(1, self.targets.unsqueeze(1))
        return 0.5 * regularisation * weights[:-1].square().sum() - picked.mean(), log_p.exp_()

    def gradient(self, regularisation: float, weights: Tensor, probabilities: Tensor) -> Tensor:
        """The gradient (d + 1, c) at weights with these probabilities, which are used up.

        By hand it takes half the memory of autograd's.
        """
        errors = probabilities
        errors[torch.arange(len(errors), device=errors.device), self.targets] -= 1
        errors /= len(errors)
        # In this order a CPU takes a third of the time of inputs.T @ errors.
        slope = (errors.T @ self.inputs).T + regularisation * weights[:-1]
        return torch.cat([slope, errors.sum(dim=0, keepdim=True)])

    def unit(self, regularisation: float) -> Tensor:
        """Length (d + 1, 1) of each direction in which the loss curves by about 1 at most.

        From its maximum curvature (Böhning 1992): half its spread, plus the regularisation.
        """
        steepness = torch.cat([0.5 * self.spread + regularisation, self.spread.new_ones(1)])
        return steepness.rsqrt().unsqueeze(1)

    def solve(self, regularisation: float, start: Tensor, tolerance: float, check: Check) -> tuple[Tensor, float]:
        """Weights (d + 1, c) and the largest entry of the scaled gradient there.

        The problem is convex; L-BFGS on all images at once finds its only minimum. Each direction is scaled by its
        maximum curvature, which takes a third of the iterations.
        """
        unit = self.unit(regularisation)
        scaled = (start / unit).requires_grad_()
        solver = torch.optim.LBFGS(
            [scaled],
            max_iter=STEPS,
            tolerance_grad=tolerance,
            tolerance_change=0,
            history_size=50,
            line_search_fn="strong_wolfe",
        )

        @torch.no_grad()
        def loss() -> Tensor:
            check()
            weights = scaled * unit
            value, probabilities = self.loss(regularisation, weights)
            scaled.grad = self.gradient(regularisation, weights, probabilities) * unit
            return value

        solver.step(loss)
        loss()
        assert scaled.grad is not None
        return scaled.detach() * unit, float(scaled.grad.abs().max())

    def polish(self, regularisation: float, start: Tensor, tolerance: float, check: Check) -> tuple[Tensor, float]:
        """As `solve`, from a start that is not far away, by Newton's method, whose last steps double the digits.

        Each step solves for the exact curvature by conjugate gradients, preconditioned by the curvature within each
        class, and is halved until the loss falls.
        """
        unit = self.unit(regularisation)
        weights = start - start.mean(dim=1, keepdim=True)  # the minimum has this mean; each step keeps it
        value, probabilities = self.loss(regularisation, weights)
        factors, taken, largest = None, 0, float("inf")
        for number in range(min(OUTER, STEPS) + 1):
            check()
            slope = self.gradient(regularisation, weights, probabilities.clone())
            largest = float((slope * unit).abs().max())
            if largest <= tolerance or number == min(OUTER, STEPS):
                break
            if factors is None or taken > STALE:
                factors = self._factors(regularisation, probabilities)
            step, taken = self._newton_step(regularisation, slope, probabilities, factors)
            expected, length = float((slope * step).sum()), 1.0
            while length > 1e-9:
                check()
                tried, found = self.loss(regularisation, weights + length * step)
                # Some slack for rounding, which would otherwise end the last steps.
                if float(tried) <= float(value) * (1 + 1e-15) + 1e-4 * length * expected:
                    break
                length /= 2
            else:  # rounding leaves nothing to gain
                break
            weights, value, probabilities = weights + length * step, tried, found
        return weights, largest

    def _factors(self, regularisation: float, probabilities: Tensor) -> Tensor:
        """Cholesky factors (c, d + 1, d + 1) of the curvature within each class, from evenly spaced images."""
        every = -(-len(self.inputs) // NEWTON_ROWS)
        inputs, p = self.inputs[::every], probabilities[::every]
        inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
        curvature = p * (1 - p) / len(p)
        blocks = torch.stack([inputs.T @ (inputs * column.unsqueeze(1)) for column in curvature.T])
        blocks.diagonal(dim1=1, dim2=2).add_(regularisation)
        return torch.linalg.cholesky(blocks)

    def _newton_step(
        self, regularisation: float, slope: Tensor, probabilities: Tensor, factors: Tensor
    ) -> tuple[Tensor, int]:
        """Newton's step (d + 1, c) to a tenth of the gradient, and the number of steps of conjugate gradients."""

        def preconditioned(residual: Tensor) -> Tensor:
            found = torch.cholesky_solve(residual.T.unsqueeze(2), factors).squeeze(2).T
            return found - found.mean(dim=1, keepdim=True)

        def curved(direction: Tensor) -> Tensor:
            scores = _affine(self.inputs, direction)
            scores = probabilities * (scores - (probabilities * scores).sum(dim=1, keepdim=True)) / len(scores)
            within = (scores.T @ self.inputs).T + regularisation * direction[:-1]
            return torch.cat([within, scores.sum(dim=0, keepdim=True)])

        step, residual = torch.zeros_like(slope), -slope
        direction = ahead = preconditioned(residual)
        left = goal = float((residual * ahead).sum())
        number = 0
        while number < INNER and left > 0.01 * goal:
            number += 1
            curve = curved(direction)
            length = left / float((direction * curve).sum())
            step, residual = step + length * direction, residual - length * curve
            ahead = preconditioned(residual)
            before, left = left, float((residual * ahead).sum())
            direction = ahead + (left / before) * direction
        return step, number


def _affine(inputs: Tensor, weights: Tensor) -> Tensor:
    return torch.addmm(weights[-1], inputs, weights[:-1])
