"""Estimates the time of a whole recipe: trains its tasks for a few epochs and extrapolates to its full number."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kaizen.bench.measure import workplace
from kaizen.bench.synthetic import choose_stream
from kaizen.config.optim import OptimConfig
from kaizen.config.schema import Config
from kaizen.config.types import AUTO
from kaizen.data.known import KNOWN_SOURCES
from kaizen.data.load import Stream
from kaizen.errors import ConfigError
from kaizen.parallel import Parallel
from kaizen.run.stop import StopRequest
from kaizen.training.plan import task_steps
from kaizen.training.trainer import Trainer


def measure_whole(recipe: str, config: Config, epochs: int, synthetic: bool, parallel: Parallel) -> dict[str, Any]:
    """Train a recipe's tasks for a few epochs each (2 or more), and evaluate them, in a temporary directory.

    Raises:
        ConfigError: the recipe's data cannot be used, or random images were asked for and their number is unknown.
        TrainingFailed: a loss is not finite.
    """
    if synthetic and config.data.source not in KNOWN_SOURCES:
        problem = f"has no use here, as the number of images in {config.data.source} decides the hours"
        raise ConfigError("--synthetic", f"{problem}; allowed: no --synthetic, or one of {', '.join(KNOWN_SOURCES)}")
    warmup = config.optim.warmup_epochs
    warmup = warmup if warmup == AUTO else min(warmup, epochs - 1)
    optim = config.optim.model_copy(update={"epochs": epochs, "images": None, "warmup_epochs": warmup})
    short = config.model_copy(update={"optim": optim, "log": config.log.model_copy(update={"wandb": "disabled"})})
    data: list[str] = []

    class OnRandomImages(Trainer):
        def load(self) -> Stream:
            stream, described = choose_stream(config, synthetic, most_bytes=sys.maxsize)
            data.append(described)
            return stream

    with workplace(parallel) as run:
        trainer = OnRandomImages(recipe, short, run / "run", StopRequest())
        trainer.run()
        # The main process deletes the directory, so it may be missing on the rest.
        found = _summary(run / "run", trainer, config.optim) if trainer.parallel.is_main else {}
    return {"schema": 1, "recipe": recipe, "config_hash": config.hash(), "data": data[0], **found}


def _summary(run: Path, trainer: Trainer, optim: OptimConfig) -> dict[str, Any]:
    """Seconds per task, and the hours of a run with the epochs or images per task of `optim`."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    results, environment = (
        json.loads((run / f"{name}.json").read_text(encoding="utf-8")) for name in ("results", "environment")
    )
    tasks = []
    for task, plan in enumerate(trainer.plan.tasks):
        of_task = [line for line in lines if line["task"] == task]
        later = [line for line in of_task if line["epoch"] > 0]
        trained, evaluated = (results["seconds"][name][task] for name in ("train", "evaluate"))
        # The last step of a task has a log line, whose seconds count from the start of the run.
        end = sum(results["seconds"]["train"][: task + 1]) - of_task[-1]["seconds"]
        trained -= end
        step = trained / plan.steps
        if len(later) > 1:
            step = (later[-1]["seconds"] - later[0]["seconds"]) / (later[-1]["step"] - later[0]["step"])
        start, rate = max(0.0, trained - step * plan.steps), plan.batch / step
        whole = start + step * task_steps(optim, plan.batch, plan.steps_per_epoch) + end + evaluated
        parts = {"start": start, "end": end, "evaluate": evaluated, "whole": whole}
        found = {"step": step, "images_per_second": rate, "steps_per_epoch": plan.steps_per_epoch}
        tasks.append(found | parts)
    return {
        "epochs": optim.epochs,
        "images": optim.images,
        "trained_epochs": trainer.config.optim.epochs,
        "tasks": tasks,
        "hours": sum(task["whole"] for task in tasks) / 3600,
        "peak_memory_bytes": results["peak_memory_bytes"],
        "device": environment["device_name"] or trainer.parallel.device.type,
    }


def whole_lines(found: dict[str, Any]) -> Iterator[str]:
    """The numbers of `measure_whole`."""
    yield f"{'recipe':19} {found['recipe']}, {found['data']}, on {found['device']}"
    for number, task in enumerate(found["tasks"]):
        yield (
            f"{f'task {number}':19} {1000 * task['step']:.2f} ms per step, {task['images_per_second']:.0f} images/s, "
            f"start {task['start']:.1f} s, end {task['end']:.1f} s ({task['end'] / task['whole']:.2%}), "
            f"evaluation {task['evaluate']:.1f} s, in all {task['whole'] / 60:.2f} min"
        )
    length = f"{found['images']} images" if found["images"] else f"{found['epochs']} epochs"
    yield f"{'peak memory':19} {found['peak_memory_bytes'] / 2**20:.0f} MiB"
    yield (
        f"{'hours':19} {found['hours']:.3f} for {length} per task with their evaluations, "
        f"from {found['trained_epochs']} epochs"
    )
