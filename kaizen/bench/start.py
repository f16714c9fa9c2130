"""How long a user waits: from the command of a launch to the end of its first step, for --help and for a wrong key."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from kaizen.bench.spread import spread
from kaizen.bench.synthetic import choose_stream, save_source, saved_keys
from kaizen.config import Config
from kaizen.errors import TrainingFailed

FIRST_STEP = re.compile(r"first step +([0-9.]+) s after the program began")
"""What a run prints when its first step is done."""
FEWEST, PART = 3, 4
"""Launches at least, and the part of the other measurements' turns that there are of them."""
SHOWN = 20
"""Lines of a failed launch's output that are shown."""


def measure_start(
    launcher: Sequence[str],
    train: Sequence[str],
    config: Config,
    synthetic: bool,
    turns: int,
    folder: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Seconds of launches, of --help and of a wrong key, in turns; a launch before them fills the cache of images.

    Args:
        launcher: words that start processes, such as accelerate launch.
        train: words that train, to follow them: -m, a module, recipe and overrides.
        config: what these mean.
        folder: for runs, and for random images.
        say: takes a line of progress.

    Raises:
        ConfigError: the data are there and cannot be used.
        TrainingFailed: a launch ended before its first step.
    """
    stream, data = choose_stream(config, synthetic)
    say(f"data: {data}")
    keys = {"log.wandb": "disabled"}
    if data != config.data.source:
        save_source(stream.source, folder / "data")
        keys |= {f"data.{key}": str(value) for key, value in saved_keys(stream.source, folder / "data").items()}
    words = [*train, *(word for key, value in keys.items() for word in (f"--{key}", value))]
    del stream
    count = max(FEWEST, turns // PART)
    say(f"{count} launches, after one that fills the cache")
    starts = [start_seconds([*launcher, *words], folder / f"run-{turn}") for turn in range(count + 1)][1:]
    plain = [sys.executable, *train]
    return {
        "data": data,
        "command": shlex.join([*launcher, *train]),
        "first_step": spread([seconds for seconds, _ in starts]),
        "program": spread([program for _, program in starts]),
        "help": spread([command_seconds([*plain, "--help"], 0) for _ in range(count)]),
        "wrong_key": spread([command_seconds([*plain, "--optim.rate", "1"], 2) for _ in range(count)]),
    }


def start_seconds(command: Sequence[str], run: Path) -> tuple[float, float]:
    """Seconds from a launch to the end of its first step, and how many of them its main process has lived.

    Raises:
        TrainingFailed: it ended before; the end of what it printed is on stderr.
    """
    began, lines = time.perf_counter(), []
    with subprocess.Popen(
        [*command, "--run.dir", str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        assert process.stdout
        try:
            for line in process.stdout:
                if found := FIRST_STEP.search(line):
                    return time.perf_counter() - began, float(found[1])
                lines.append(line)
        finally:
            _end(process, run)
    print("".join(lines[-SHOWN:]), end="", file=sys.stderr)
    code = process.returncode
    raise TrainingFailed(f"--start: {shlex.join(command)} ended with code {code} before its first step, as shown above")


def _end(process: "subprocess.Popen[str]", run: Path) -> None:
    """End a launch and all that it started, and take its run away."""
    if run.is_dir():
        (run / "stop").touch()  # for processes of sessions of their own, where the system does not end them
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    assert process.stdout
    for _ in process.stdout:  # until nobody holds it any more
        pass
    shutil.rmtree(run, ignore_errors=True)


def command_seconds(command: Sequence[str], code: int) -> float:
    """Seconds of a command that ends by itself, with this code.

    Raises:
        TrainingFailed: it ended with another one.
    """
    began = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True)
    taken = time.perf_counter() - began
    if ended.returncode != code:
        problem = f"ended with code {ended.returncode}, not {code}: {ended.stderr.strip()}"
        raise TrainingFailed(f"--start: {shlex.join(command)} {problem}")
    return taken
