"""Tasks in training, for tests of single steps: ordinary and recorded steps from the same state."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kaizen.bench.session import Session, begin_run
from kaizen.bench.synthetic import choose_stream
from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.model.methods import REGISTRY, method_class
from kaizen.parallel import Parallel
from kaizen.training.defaults import Facts, suit
from kaizen.training.plan import make_plan

SMALL = ["--encoder.width", "2", "--method.projector_hidden", "12", "--method.projector_out", "6"]
SMALL += ["--distill.hidden", "10", "--classifier.hidden", "[7]", "--replay.batch", "8", "--replay.per_class", "2"]
SMALL += ["--stream.tasks", "3", "--optim.batch", "64", "--optim.epochs", "4", "--optim.warmup_epochs", "1"]
SMALL += ["--optim.name", "lars", "--optim.lr", "1", "--optim.classifier_lr", "0.1"]
KEYS = {"predictor_hidden": 9, "queue_size": 64, "prototypes": 14, "whitening_size": 12, "directions": 16}


def small(method: str) -> list[str]:
    """Arguments of a method with very small networks."""
    fields = method_class(method).Settings.model_fields
    return [*SMALL, *(word for key, n in KEYS.items() if key in fields for word in (f"--method.{key}", str(n)))]


def more_of(method: str) -> list[str]:
    """Arguments in addition to `small`: a change of phase, missing labels, and one of three optimizers."""
    name = ("lars", "sgd", "adamw")[list(REGISTRY).index(method) % 3]
    queue = ["--method.queue_epoch", "1"] if method == "swav" else []
    return [*small(method), *queue, "--optim.name", name, "--optim.lr", "0.1", "--labels.fraction", "0.6"]


def begin(
    arguments: list[str],
    place: Path,
    *,
    recipe: str = "digits",
    task: int = 1,
    recording: bool = True,
    parallel: Any = None,
    synthetic: bool = True,
) -> Session:
    """A task of a recipe on random images or its own; the previous state is created in `place` once."""
    _, config = resolve(*parse_arguments([recipe, *arguments]))
    parallel = parallel or Parallel()
    stream = choose_stream(config, synthetic)[0]
    config = suit(config, Facts.of(stream))[0]
    plan = make_plan(config, stream.train_sizes, parallel.world, parallel.accumulation)
    run = place / "run"
    if task and not run.exists():
        begin_run(config, stream, plan, run, parallel)
    return Session(config, stream, plan, task, run, parallel, logs=place / "logs", recording=recording)


def changed_by_steps(session: Session) -> list[Tensor]:
    """Everything that a step changes: networks, twin, state of the method and of the optimizer."""
    state = session.state
    tensors = [*state.learner.state_dict().values()]
    tensors += [*state.twin.state_dict().values()] if state.twin is not None else []
    held = state.optimizer.state.values()
    return tensors + [value for one in held for value in one.values() if isinstance(value, Tensor)]


def terms_of(session: Session, steps: int) -> list[list[float]]:
    """The four terms of each of the steps."""
    return [[float(value) for value in session.step().values()] for _ in range(steps)]


def equal(ones: list[Tensor], others: list[Tensor]) -> bool:
    return len(ones) == len(others) and all(torch.equal(a, b) for a, b in zip(ones, others, strict=True))
