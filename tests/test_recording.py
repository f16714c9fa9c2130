"""Recorded steps equal ordinary ones: on a CPU by a stand-in for CUDA graphs, which holds the device half's promise."""

from pathlib import Path

import pytest
from sessions import begin, changed_by_steps, equal, small, terms_of
from tape import TapeLanes

from kaizen.bench.session import Session
from kaizen.methods import REGISTRY
from kaizen.parallel import Parallel
from kaizen.recording import Recorder

STEPS = 20


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operations of a GPU, on a CPU: no value decides in views, and optimizers are fused."""
    for module in ("views", "colour"):
        monkeypatch.setattr(f"kaizen.data.{module}.on_cpu", lambda tensor: False)
    monkeypatch.setattr(Parallel, "fuses", True)


def record(session: Session) -> TapeLanes:
    """Have a session on a CPU record its steps."""
    lanes = TapeLanes(lambda: changed_by_steps(session))
    session.stepper.recorder = Recorder(session.stepper.device_step, lanes)
    return lanes


def more_of(method: str) -> list[str]:
    """A phase that ends and one that begins within the steps, labels for some, and three optimizers by turns."""
    name = ("lars", "sgd", "adamw")[list(REGISTRY).index(method) % 3]
    queue = ["--method.queue_epoch", "1"] if method == "swav" else []
    return [*small(method), *queue, "--optim.name", name, "--optim.lr", "0.1", "--labels.fraction", "0.6"]


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("method", REGISTRY)
def test_replayed_steps_equal_ordinary_ones(method: str, tmp_path: Path) -> None:
    """Rates, tau, labels, keys and temperatures differ from step to step; the operations may not."""
    arguments = ["--method.name", method, *more_of(method)]
    for task in (1, 0) if method in ("mocov2plus", "simclr") else (1,):
        ordinary = begin(arguments, tmp_path, task=task)
        expected = terms_of(ordinary, STEPS)
        recorded = begin(arguments, tmp_path, task=task)
        lanes = record(recorded)
        assert terms_of(recorded, STEPS) == expected
        assert equal(changed_by_steps(recorded), changed_by_steps(ordinary))
        assert recorded.stepper.recorder is not None
        assert recorded.stepper.recorder.refused is None
        assert recorded.stepper.recorder.recorded
        assert lanes.recorded == (2 if method in ("dino", "swav") else 1), "one recording for each phase"
        for session in (ordinary, recorded):
            session.close()
