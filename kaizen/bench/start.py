"""The user's waiting time: from a launch to the end of its first step, for --help and for a wrong key."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import IO, Any

from kaizen.bench.spread import spread
from kaizen.bench.synthetic import choose_stream, save_source, saved_keys
from kaizen.config.schema import Config
from kaizen.errors import ConfigError, TrainingFailed
from kaizen.run.log import FIRST_STEP

TOLD = re.compile(re.escape(FIRST_STEP).replace(re.escape("{:.1f}"), "([0-9.]+)"))
FEWEST, PART = 3, 4
"""Number of launches: one per PART of --repetitions, at least FEWEST."""
MOST_SECONDS = 1800.0
"""Time limit of a launch until its first step."""
LEAVE_SECONDS = 10.0
"""Time limit to end after a signal."""
SHOWN = 20
"""Number of lines shown of a failed command's output."""
PIPED: dict[str, Any] = {
    "stdin": subprocess.DEVNULL,
    "stdout": subprocess.PIPE,
    "stderr": subprocess.STDOUT,
    "text": True,
    "errors": "replace",
}


def measure_start(
    launcher: Sequence[str],
    train: Sequence[str],
    config: Config,
    synthetic: bool,
    turns: int,
    folder: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Seconds of launches, of --help and of a wrong key, in turns.

    A first launch is not counted: it fills the cache of random images, and warms up the machine.

    Args:
        launcher: words that start processes, such as accelerate launch; empty: a plain process.
        train: words that follow it: -m, a module, recipe and overrides; `config` is their configuration.
        folder: directory for runs and random images.

    Raises:
        ConfigError: the data exist and cannot be used, or the launcher cannot be run.
        TrainingFailed: a launch ended before its first step, or did not reach it in time.
    """
    stream, data = choose_stream(config, synthetic)
    say(f"data: {data}")
    keys = {"log.wandb": "disabled", "run.resume": "auto"}
    if data != config.data.source:
        save_source(stream.source, folder / "data")
        keys |= {f"data.{key}": str(value) for key, value in saved_keys(stream.source, folder / "data").items()}
    del stream
    alone = [sys.executable, *train]
    others = (([*alone, "--help"], 0), ([*alone, "--optim.rate", "1"], 2))
    command = [*(launcher or [sys.executable]), *train, *(word for key in keys for word in (f"--{key}", keys[key]))]
    count = max(FEWEST, turns // PART)
    say(f"{count} launches, after one that is not counted")
    taken: list[tuple[float, ...]] = []
    for turn in range(count + 1):
        launched = start_seconds(command, folder / f"run-{turn}")
        taken.append((*launched, *(command_seconds(words, code) for words, code in others)))
    names = ("first_step", "program", "help", "wrong_key")
    measured = {name: spread(seconds) for name, seconds in zip(names, zip(*taken[1:], strict=True), strict=True)}
    return {"data": data, "command": shlex.join([*launcher, *train]), **measured}


def start_seconds(command: Sequence[str], run: Path) -> tuple[float, float]:
    """Seconds from a launch (without --run.dir) to the end of its first step, and those since its main process started.

    The run directory is deleted afterwards; launchers leave their files next to it.

    Raises:
        ConfigError: the command cannot be run.
        TrainingFailed: it ended before that, or took too long; the end of its output is on stderr.
    """
    began = time.perf_counter()
    try:
        process = subprocess.Popen(
            [*command, "--run.dir", str(run)],
            env={**os.environ, "TMPDIR": str(run.parent)},
            start_new_session=True,
            **PIPED,
        )
    except OSError as error:
        raise ConfigError("--start", f"is {command[0]!r}, which cannot be run ({error.strerror})") from None
    assert process.stdout
    lines: Queue[str | None] = Queue()
    reader = Thread(target=_read, args=(process.stdout, lines), daemon=True)
    reader.start()
    last: deque[str] = deque(maxlen=SHOWN)
    signals = [signal.SIGTERM, signal.SIGKILL]
    try:
        while line := lines.get(timeout=max(0.0, began + MOST_SECONDS - time.perf_counter())):
            if found := TOLD.search(line):
                # Its processes now end with their launcher; a request to stop would make them save first.
                signals = [signal.SIGKILL]
                return time.perf_counter() - began, float(found[1])
            last.append(line)
        problem = "ended without reporting a first step"
    except Empty:
        problem = f"has reported no first step for {MOST_SECONDS:.0f} s"
    finally:
        _end(process, run, reader, signals)
    raise _failure(command, problem, last)


def _read(pipe: IO[str], lines: "Queue[str | None]") -> None:
    for line in pipe:
        lines.put(line)
    lines.put(None)


def _end(process: "subprocess.Popen[str]", run: Path, reader: Thread, signals: Sequence[signal.Signals]) -> None:
    """End a launch and all its processes, and delete its run."""
    for number in signals:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(LEAVE_SECONDS)
        reader.join(LEAVE_SECONDS)  # until no process has the pipe open
        if not reader.is_alive():
            break
    else:
        # Our signals do not reach processes in separate sessions; the file stops them.
        with suppress(OSError):
            run.mkdir(parents=True, exist_ok=True)
            (run / "stop").touch()
        reader.join(LEAVE_SECONDS)
    shutil.rmtree(run, ignore_errors=True)


def command_seconds(command: Sequence[str], code: int) -> float:
    """Seconds of a command that ends by itself with this exit code.

    Raises:
        TrainingFailed: it ended with a different code; the end of its output is on stderr.
    """
    began = time.perf_counter()
    ended = subprocess.run(command, **PIPED)
    taken = time.perf_counter() - began
    if ended.returncode != code:
        problem = f"ended with code {ended.returncode}, not {code}"
        raise _failure(command, problem, ended.stdout.splitlines(keepends=True)[-SHOWN:])
    return taken


def _failure(command: Sequence[str], problem: str, last: Iterable[str]) -> TrainingFailed:
    """The error; the last lines of the command's output are printed on stderr before."""
    print("".join(last), end="", file=sys.stderr)
    return TrainingFailed(f"--start: {shlex.join(command)} {problem}; the end of its output is above")
