"""Run by test_curves.py on any number of processes: the first steps of a run, in float64, for every method.

usage: curves.py OUT CACHE NAME..., names of methods, of COMBINED, or of MEMORIES, with which SimCLR trains; the main
process writes OUT/world-N.json, the four terms of each step by name.
"""

import json
import sys
from functools import partial
from pathlib import Path

import torch
from runs import COMBINED
from small_steps import SMALL, WEIGHTS, keys_of
from torch import Tensor

import kaizen.evaluation.features
import kaizen.model.teacher
import kaizen.training.state
from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.data.load import load_stream
from kaizen.data.views import normalize
from kaizen.model.learner import Learner, Network
from kaizen.parallel import Parallel
from kaizen.run.places import task_directory
from kaizen.training.device_step import DeviceStep
from kaizen.training.plan import make_plan
from kaizen.training.state import TaskState
from kaizen.training.step import Stepper

VIEWS = DeviceStep.views
MEMORIES = {"lump": ("--replay.mix", "lump"), "stored_logits": ("--classifier.distill", "stored_logits")}
"""Uses of the memory other than replay."""
FIRST, SECOND = 4, 10
"""Steps of task 0, and of task 1 with teacher, distillers and replay."""


def double_views(self: DeviceStep, images: Tensor, keys: Tensor) -> list[Tensor]:
    return [view.double() for view in VIEWS(self, images, keys)]


def curve(method: str, run: Path, cache: str, parallel: Parallel) -> list[dict[str, float]]:
    """Global terms of the steps; batches of 22 + 6 images are uneven over two and over four processes."""
    chosen = COMBINED.get(method, ("--method.name", method))
    options = list(MEMORIES[method]) if method in MEMORIES else [*keys_of(chosen)]
    options += ["--data.cache_dir", cache, "--replay.batch", "6"]
    options += ["--optim.batch", "22", "--optim.name", "lars", "--optim.lr", "0.05", "--optim.warmup_epochs", "0"]
    options += ["--optim.epochs", "2", "--labels.fraction", "0.5", "--replay.policy", "herding"]
    config = resolve(*parse_arguments([*SMALL, *options]))[1]
    stream = load_stream(config)
    plan = make_plan(config, stream.train_sizes, parallel.world, parallel.accumulation)
    found = []
    for task, steps in enumerate((FIRST, SECOND)):
        state = TaskState(config, 10, task, plan.tasks[task].images, plan.lr, WEIGHTS, run, parallel)
        stepper = Stepper(stream, plan, state)
        for step in range(steps):
            stepper.prepare_measures()
            found.append(parallel.mean(stepper.step(step)) | stepper.measures())
        end = stepper.task_end()
        files, (statistics, _) = end.files(), end.statistics()
        # Before they are rounded to float16, where the last bit of a feature can decide the last bit of a mean.
        found[-1] |= {"statistics/means": float(statistics.means.norm())}
        found[-1] |= {"statistics/covariance": float(statistics.covariance.norm())}
        state.save_task_end(task_directory(run, task), files, stepper.image, partial(dict, task=task, step=0))
        parallel.accelerator.free_memory()
    return found


if __name__ == "__main__":
    out, cache, methods = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    # In float32 rounding errors grow along a curve until a comparison shows nothing.
    DeviceStep.views = double_views  # type: ignore[method-assign]
    kaizen.training.state.Learner = lambda *args: Learner(*args).double()  # type: ignore[misc,assignment]
    kaizen.model.teacher.Network = lambda *args: Network(*args).double()  # type: ignore[misc,assignment]
    kaizen.evaluation.features.normalize = lambda *args: normalize(*args).double()
    parallel = Parallel()
    torch.set_num_threads(1)
    curves = {
        name: curve(name, out / f"run-{parallel.world}-{name.replace(', ', '-')}", cache, parallel) for name in methods
    }
    if parallel.is_main:
        (out / f"world-{parallel.world}.json").write_text(json.dumps(curves))
    parallel.close()
