"""A task in training, stepped like the trainer's, except for checkpoints."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from kaizen.config.schema import Config
from kaizen.data.load import Stream
from kaizen.model.learner import total
from kaizen.parallel import Parallel, synchronize
from kaizen.run.log import RunLog
from kaizen.run.places import task_directory
from kaizen.run.progress import Clock
from kaizen.run.stop import STOP_STEPS
from kaizen.training.plan import Plan, term_weights
from kaizen.training.state import TaskState
from kaizen.training.step import Stepper


def begin_run(config: Config, stream: Stream, plan: Plan, run: Path, parallel: Parallel) -> int:
    """Write the untrained end state of task 0, with its replay memory; returns the next task to train."""
    if len(stream.tasks) == 1:
        return 0
    weights = term_weights(config, stream.tasks, 0)
    state = TaskState(config, stream.source.num_classes, 0, plan.tasks[0].images, plan.lr, weights, run, parallel)
    stepper = Stepper(stream, plan, state, recording=False)
    stepper.close()
    files, position = stepper.task_end().files(), {"task": 0, "step": 0}
    state.save_task_end(task_directory(run, 0), files, stepper.image, lambda: position)
    parallel.accelerator.free_memory()
    return 1


class Session:
    """The training loop of one task, which starts from the state in a run directory.

    Args:
        task: index of the task.
        logs: directory of the log; a directory other than the run's keeps the run's log unchanged.
        recording: record steps if a run would.
    """

    def __init__(
        self,
        config: Config,
        stream: Stream,
        plan: Plan,
        task: int,
        run: Path,
        parallel: Parallel,
        *,
        logs: Path,
        recording: bool = True,
    ) -> None:
        self.config, self.plan, self.task, self.parallel = config, plan, task, parallel
        self.tasks, self.num_classes = len(stream.tasks), stream.source.num_classes
        self.weights = term_weights(config, stream.tasks, task)
        sizes = self.num_classes, task, plan.tasks[task].images
        self.state = TaskState(config, *sizes, plan.lr, self.weights, run, parallel)
        self.stepper = Stepper(stream, plan, self.state, recording=recording)
        self.clock, self.done = Clock(0.0), 0
        logs.mkdir(parents=True, exist_ok=True)
        self.log = RunLog(logs, config, parallel, steps=plan.tasks[task].steps, done=0, lines=False)

    def step(self, *, logged: bool = False) -> dict[str, Tensor]:
        """One step as in the trainer; a log line is written when it is due, and always if `logged`."""
        plan = self.plan.tasks[self.task]
        step = self.done % plan.steps
        logged = logged or (self.done + 1) % self.config.log.every_steps == 0
        if logged:
            self.stepper.prepare_measures()
        terms = self.stepper.step(step)
        self.done += 1
        self.clock.count(plan.batch)
        self.log.progress.advance(self.task, self.tasks, step // plan.steps_per_epoch, plan.epochs)
        if logged:
            self.write_log(terms)
        if self.done % STOP_STEPS == 0:
            self.parallel.any(False)
        return terms

    def seconds(self, steps: int) -> float:
        """Mean seconds per step over `steps` steps."""
        synchronize(self.parallel.device)
        began = time.perf_counter()
        for _ in range(steps):
            self.step()
        synchronize(self.parallel.device)
        return (time.perf_counter() - began) / steps

    @contextmanager
    def ordinary(self) -> Iterator[None]:
        """Take ordinary steps inside, even if steps are recorded."""
        held, self.stepper.recorder = self.stepper.recorder, None
        try:
            yield
        finally:
            self.stepper.recorder = held

    def ordinary_seconds(self, steps: int) -> float:
        """Mean seconds per ordinary step over `steps` steps."""
        with self.ordinary():
            return self.seconds(steps)

    def write_log(self, terms: dict[str, Tensor]) -> None:
        """Write the log line of a step; waits for the device."""
        values = self.parallel.mean({**terms, "total": total(terms, self.weights)})
        rate = self.clock.lap()
        losses = {f"loss/{name}": value for name, value in values.items()}
        position = {"step": self.done, "task": self.task, "seconds": self.clock.seconds(), "images_per_second": rate}
        self.log.line(position | losses | self.stepper.measures())
        self.log.progress.show(values["total"], rate)

    def close(self) -> None:
        """Release the resources of the steps, and close the log."""
        self.stepper.close()
        self.log.close()
