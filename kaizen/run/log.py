"""What a run tells while it goes on: log.jsonl, status.json, environment.json, the progress bar, trackers."""

import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import kaizen
from kaizen.config.schema import Config
from kaizen.errors import ConfigError
from kaizen.parallel import Parallel
from kaizen.run.checkpoint import write_json, write_text, writing

FIRST_STEP = "first step          {:.1f} s after the program began"
LIBRARIES = ("torch", "torchvision", "accelerate", "datasets", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that decide what a run computes."""
    return {"kaizen": kaizen.__version__} | {name: version(name) for name in LIBRARIES}


def write_status(
    directory: Path, state: str, *, exit_code: int | None, task: int, step: int, reason: str | None = None
) -> None:
    """status.json: launchers swallow exit codes, so scripts read this."""
    content = {"state": state, "exit_code": exit_code, "task": task, "step": step, "reason": reason}
    file = directory / "status.json"
    try:
        write_json(file, content)
    except OSError:
        # On a full disk the old file's own block is all the room there is.
        with writing(file), open(file, "r+") as held:
            held.write(json.dumps(content) + "\n")
            held.truncate()


def environment(parallel: Parallel) -> dict[str, Any]:
    """What decides, beside the configuration, whether two runs can be equal bit for bit."""
    device = torch.cuda.get_device_name(parallel.device) if parallel.device.type == "cuda" else platform.processor()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions(),
        **parallel.setting(),
        "device_name": device,
        "command": sys.argv,
    }


def read_position(directory: Path) -> tuple[int, int]:
    """Task and step that status.json tells; (0, 0) where there is none to be read."""
    try:
        status = json.loads((directory / "status.json").read_text())
        return int(status["task"]), int(status["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, 0


class Clock:
    """Seconds that a task has trained, over all its starts, and images a second since the last look."""

    def __init__(self, before: float) -> None:
        self._started = self._lap = time.perf_counter()
        self._before, self._images = before, 0

    def count(self, images: int) -> None:
        """Images of one step."""
        self._images += images

    def seconds(self) -> float:
        """Seconds of training, those before a restart included."""
        return self._before + time.perf_counter() - self._started

    def lap(self) -> float:
        """Images a second since the last call."""
        now = time.perf_counter()
        rate, self._images = self._images / (now - self._lap), 0
        self._lap = now
        return rate


def cut_log(file: Path, step: int) -> None:
    """Drop lines after a step of the run: the steps that a restored checkpoint will do again."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text(errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # a line cut short by a kill
    write_text(file, "".join(kept))


class RunLog:
    """Progress of the whole run, written by one process; the bar is quiet where stderr is no terminal."""

    def __init__(self, directory: Path, config: Config, parallel: Parallel, *, steps: int, done: int) -> None:
        self.parallel = parallel
        self._file = open(directory / "log.jsonl", "a") if parallel.is_main else None  # noqa: SIM115
        self._bar = tqdm(
            total=steps,
            initial=done,
            unit="step",
            dynamic_ncols=True,
            disable=not (parallel.is_main and sys.stderr.isatty()),
        )
        self._tracking = config.log.wandb != "disabled"
        if self._tracking:
            self._start_wandb(directory, config)

    def _start_wandb(self, directory: Path, config: Config) -> None:
        options = {"name": config.log.name or directory.name, "mode": config.log.wandb, "dir": str(directory)}
        try:
            self.parallel.accelerator.init_trackers(
                config.log.project, config=config.model_dump(mode="json"), init_kwargs={"wandb": options}
            )
        except Exception as error:  # wandb raises its own kinds for a missing key, a refused one, no network
            reason = " ".join(str(error).split())
            raise ConfigError(
                "log.wandb", f"is {config.log.wandb!r} and could not start ({reason}); allowed: offline"
            ) from error

    def line(self, record: Mapping[str, Any]) -> None:
        """Append one line to log.jsonl (and the tracker); `record` holds `step`."""
        if self._file is not None:
            with writing(Path(self._file.name)):
                self._file.write(json.dumps(record) + "\n")
                self._file.flush()
        if self._tracking:
            values = {k: v for k, v in record.items() if isinstance(v, int | float)}
            self.parallel.accelerator.log(values, step=record["step"])

    def sync(self) -> None:
        """Have the lines on the disk before what is saved at the same step."""
        if self._file is not None:
            with writing(Path(self._file.name)):
                os.fsync(self._file.fileno())

    def advance(self, task: int, tasks: int, epoch: int, epochs: int) -> None:
        """One step done."""
        if not self._bar.disable:
            self._bar.set_description(f"task {task} of {tasks}, epoch {epoch + 1}/{epochs}", refresh=False)
            self._bar.update()

    @contextmanager
    def evaluating(self, task: int, tasks: int) -> Iterator[None]:
        """Name the network on the bar, which stands still while it is evaluated: that of a task, or -1, untrained."""
        self._bar.set_description(f"evaluating task {task} of {tasks}" if task >= 0 else "evaluating untrained network")
        yield
        self._bar.set_description("")

    def show(self, loss: float, images_per_second: float) -> None:
        """Latest loss and throughput on the bar."""
        self._bar.set_postfix_str(f"loss {loss:.3f}, {images_per_second:.0f} images/s", refresh=False)

    def say(self, text: str) -> None:
        """A line above the bar."""
        if self.parallel.is_main:
            self._bar.write(text, file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        """Close file, bar and trackers."""
        self._bar.close()
        if self._file is not None:
            with suppress(OSError):  # what did not fit on the disk was told when it was written
                self._file.close()
        if self._tracking:
            # Not accelerate's end_training, which also takes down the group of processes.
            for tracker in self.parallel.accelerator.trackers:
                tracker.finish()
