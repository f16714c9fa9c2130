"""Norms and ranks of a step, against numpy; measuring changes nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sessions import begin, changed_by_steps, equal, small
from torch import Tensor

from kaizen.bench.session import Session
from kaizen.evaluation.features import rankme
from kaizen.parallel import ONE_PROCESS
from kaizen.training.measures import finite, projection_rankme, projection_std


def flat(tensors: list[Tensor]) -> np.ndarray:
    return np.concatenate([tensor.detach().double().numpy().ravel() for tensor in tensors])


def parameters(session: Session) -> np.ndarray:
    return flat(list(session.state.learner.parameters()))


def rank(rows: np.ndarray) -> float:
    """RankMe by a decomposition of all rows."""
    values = np.linalg.svd(rows, compute_uv=False)
    shares = values[values > 1e-7 * values.max()] / values[values > 1e-7 * values.max()].sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


@pytest.mark.parametrize("optimizer", ["lars", "sgd", "adamw"])
@pytest.mark.parametrize("method", ["simclr", "swav", "lejepa", "supervised"])
def test_they_are_those_of_numpy(method: str, optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--method.name", method, *small(method), "--optim.name", optimizer, "--log.every_steps", "999"]
    session = begin(arguments, tmp_path)
    gradients: list[np.ndarray] = []
    step = session.state.optimizer.step

    def watched(*given: Any) -> Any:
        held = [p.grad for p in session.state.learner.parameters() if p.grad is not None]
        gradients.append(flat(held))
        return step(*given)

    monkeypatch.setattr(session.state.optimizer, "step", watched)
    for number in range(3):
        before = parameters(session)
        session.stepper.prepare_measures()
        session.stepper.step(number)
        found, done = session.stepper.measures(), session.stepper._done
        assert done is not None
        assert found["gradient_norm"] == pytest.approx(np.linalg.norm(gradients[number]), rel=1e-5)
        assert found["update_norm"] == pytest.approx(np.linalg.norm(parameters(session) - before), rel=1e-4)
        rows = np.concatenate([view.double().numpy() for view in done.projections])
        assert found["projection_rankme"] == pytest.approx(rank(rows), rel=1e-4)
        assert found["projection_std"] == projection_std(done.projections, ONE_PROCESS)
    session.close()


def test_a_measured_step_is_the_same_step(tmp_path: Path) -> None:
    sessions = [begin(["--method.name", "byol", *small("byol")], tmp_path) for _ in range(2)]
    for number in range(4):
        sessions[0].stepper.prepare_measures()
        for session in sessions:
            session.stepper.step(number)
        sessions[0].stepper.measures()
    assert equal(*map(changed_by_steps, sessions))
    for session in sessions:
        session.close()


@pytest.mark.parametrize(("n", "d"), [(40, 6), (6, 40), (7, 7)])
def test_the_rank_is_the_same_from_either_square_matrix(n: int, d: int) -> None:
    rows = torch.randn(2 * n, d, dtype=torch.float64) * torch.arange(1, d + 1)
    found = projection_rankme(rows.split(n), ONE_PROCESS, [n])
    assert found == rankme(rows) == pytest.approx(rank(rows.numpy()), rel=1e-6)
    assert projection_rankme([rows[:1], rows[:1]], ONE_PROCESS, [1]) == pytest.approx(1.0, rel=1e-6)


def test_a_norm_that_is_not_finite_is_unknown() -> None:
    assert [finite(value) for value in (1.5, float("inf"), float("nan"))] == [1.5, None, None]
