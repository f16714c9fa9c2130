"""Compares the cost of late and early tasks: trains many small tasks in sequence."""

import json
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from kaizen.bench.session import Session
from kaizen.bench.spread import Spread, interleaved, ratio, spread
from kaizen.bench.synthetic import choose_stream
from kaizen.config.optim import OptimConfig
from kaizen.config.schema import Config
from kaizen.data.load import Stream
from kaizen.errors import ConfigError
from kaizen.parallel import Parallel
from kaizen.training.defaults import Facts, suit
from kaizen.training.plan import Plan, make_plan, task_steps

EARLY = 1
"""The first task with a teacher and a memory; the last task is compared with it."""
FEWEST = EARLY + 2


def check_tasks(config: Config, tasks: int) -> None:
    """Refuse a number of tasks that a recipe cannot have.

    Raises:
        ConfigError: names what is allowed.
    """
    if config.stream.kind not in ("class", "data"):
        raise ConfigError("--tasks", f"is {tasks}, and stream.kind is {config.stream.kind!r}; allowed: class, data")
    if tasks < FEWEST:
        raise ConfigError("--tasks", f"is {tasks}; allowed: at least {FEWEST}, a task between task 0 and the last")


def small_tasks(config: Config, steps: int, synthetic: bool, parallel: Parallel) -> tuple[Config, Stream, str]:
    """A configuration whose tasks have equal batches and a minimum number of steps, its data, and their description."""
    stream, data = parallel.main_first(lambda: choose_stream(config, synthetic, most_bytes=0))
    config = suit(config, Facts.of(stream))[0]
    batch = min(config.optim.batch, *stream.train_sizes)
    epochs = max(1, -(-steps // min(images // batch for images in stream.train_sizes)))
    changed = {
        "optim": config.optim.model_copy(update={"batch": batch, "epochs": epochs, "images": None, "warmup_epochs": 0}),
        "run": config.run.model_copy(update={"checkpoint_every": 0}),
        "log": config.log.model_copy(update={"every_steps": 1, "wandb": "disabled"}),
    }
    config = config.model_copy(update=changed)
    make_plan(config, stream.train_sizes, parallel.world, parallel.accumulation)
    return config, stream, data


def step_seconds(run: Path, task: int) -> list[float]:
    """Seconds of each step of a task except the first, from a run's log of every step."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    ends = [record["seconds"] for record in records if record["task"] == task]
    return [end - begin for begin, end in pairwise(ends)]


def compare_tasks(config: Config, stream: Stream, plan: Plan, run: Path, parallel: Parallel, turns: int) -> Spread:
    """Ratio of seconds per step, last task to task 1, both restarted from the run's files and run in turns."""
    last = len(stream.tasks) - 1
    tasks = (last, EARLY)
    sessions = [Session(config, stream, plan, task, run, parallel, logs=run / f"again-{task}") for task in tasks]
    late, early = interleaved([session.seconds for session in sessions], turns, 1)
    for session in sessions:
        session.close()
    return ratio(late, early)


def summary(run: Path, plan: Plan, optim: OptimConfig, peaks: list[int], again: Spread) -> dict[str, Any]:
    """Costs of a finished run per task; the share of evaluation assumes the recipe's full epochs or images."""
    tasks = len(plan.tasks)
    taken = [step_seconds(run, task) for task in range(tasks)]
    evaluated = json.loads((run / "results.json").read_text(encoding="utf-8"))["seconds"]["evaluate"]
    steps = [task_steps(optim, t.batch, t.steps_per_epoch) for t in plan.tasks]
    trained = [median(seconds) * count for seconds, count in zip(taken, steps, strict=True)]
    shares = [e / (t + e) for t, e in zip(trained, evaluated, strict=True)]
    return {
        "tasks": tasks,
        "epochs": optim.epochs,
        "images": optim.images,
        "step_seconds": [spread(steps) for steps in taken],
        "last_over_first": again,
        "last_over_first_in_the_run": median(taken[-1]) / median(taken[EARLY]),
        "peak_bytes": peaks,
        "evaluation_share": shares,
    }
