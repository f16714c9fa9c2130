"""`python -m kaizen sweep FILE`: trains every line of a sweep file, each in its own process and directory.

A run's log file is locked as long as any of its processes is alive, so that a run that outlives a killed sweep is not
started a second time in parallel.
"""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from kaizen.cli.sweep import SweepRun, read_sweep
from kaizen.commands.parser import Parser, at_least, launcher
from kaizen.config.schema import with_numbers
from kaizen.config.yaml import parse_yaml
from kaizen.errors import ConfigError, Stopped, TrainingFailed
from kaizen.plugins import changed_code
from kaizen.run.stop import StopRequest

TRAIN = "kaizen.commands.train"
LOG = "train.log"
POLL_SECONDS = 0.1
USAGE = "python -m kaizen sweep FILE --run.dir DIR [--jobs N] [--launcher COMMAND] [--only N] [--list]"
ABOUT = """Train every run of a sweep file, each in its own process and in DIR/NAME, where NAME consists of its recipe,
preset and overrides. Finished runs are skipped, interrupted runs resume; a run that fails does not stop the rest."""
CLOSING = """A line of FILE is RECIPE [--preset NAME] [--section.key VALUE ...]; # begins a comment.
A list {a,b,c} in any word gives one run per value, several lists all combinations:

  digits --preset {finetune,cassle,kaizen} --run.seed {0,1,2}      # nine runs
  digits --classifier.hidden {[],[128]} --data.source parquet:/data/{old,new}

Every line is checked before anything runs. A run's output is in DIR/NAME/train.log. Ctrl-C, SIGTERM or a file `stop`
in DIR stop the runs, each with a checkpoint; the same command resumes them. Runs in parallel share the cores evenly,
unless KAIZEN_THREADS is set.
Exit codes: 0 all done, 2 a line or an argument is wrong, 3 a run failed, 75 stopped; with --only that of the run."""


def main(tokens: Sequence[str]) -> int:
    """Run the sweep; returns the exit code."""
    parser = Parser(USAGE, ABOUT, CLOSING)
    parser.add_argument("file", metavar="FILE", type=Path, help="the sweep file")
    parser.add_argument("--run.dir", dest="dir", metavar="DIR", type=Path, required=True, help="directory of the runs")
    parser.add_argument("--jobs", metavar="N", type=at_least(1), default=1, help="runs in parallel [1]")
    parser.add_argument(
        "--launcher",
        metavar="COMMAND",
        type=launcher,
        default=[],
        help="starts each run, as 'accelerate launch -q --num_processes 4' [none: one process]",
    )
    parser.add_argument("--only", metavar="N", type=int, help="only this run, by its number in --list")
    parser.add_argument("--list", action="store_true", help="run nothing: print number, directory and command per run")
    given = parser.parse_args(tokens)
    stop = StopRequest()
    try:
        stop.install()
        runs = read_sweep(given.file)
        stop.defer()
    except Stopped as stopped:
        print(f"stopped by {stopped}: nothing was started", file=sys.stderr)
        return Stopped.exit_code
    directory = given.dir.expanduser()
    if given.only is not None and not 0 <= given.only < len(runs):
        raise ConfigError("--only", f"is {given.only}; allowed: 0 to {len(runs) - 1}, the runs of {given.file}")
    chosen = range(len(runs)) if given.only is None else [given.only]
    if given.list:
        for number in chosen:
            path = directory / runs[number].name
            words = train_command(runs[number], path, given.launcher or ["python"])
            print(number, path, shlex.join(words), sep="\t")
        return 0
    stop.watch(directory)
    sweep = Sweep([runs[number] for number in chosen], directory, given.jobs, given.launcher, stop)
    code = sweep.run()
    return code if given.only is None else sweep.failed_with or code


def train_command(run: SweepRun, path: Path, launcher: Sequence[str]) -> list[str]:
    """Words of the command that trains a run in a directory."""
    return [*launcher, "-m", TRAIN, *run.tokens, "--run.dir", str(path)]


@dataclass
class Child:
    """A running run: its process, its directory and the position (bytes) where its part of the log begins."""

    run: SweepRun
    process: subprocess.Popen[bytes]
    path: Path
    log_from: int
    status: tuple[int, int] | None
    began: float


class Sweep:
    """Runs of a sweep, `jobs` in parallel, in subdirectories of one directory; an empty launcher: a plain process."""

    def __init__(
        self, runs: Sequence[SweepRun], directory: Path, jobs: int, launcher: Sequence[str], stop: StopRequest
    ) -> None:
        self.waiting, self.active, self.ended = list(runs), list[Child](), Counter[str]()
        self.directory, self.jobs, self.launcher, self.stop = directory, jobs, list(launcher), stop
        self._total, self._elsewhere = len(runs), set[str]()
        self.failed_with = 0  # code of the last run that failed
        self._bar = tqdm(total=len(runs), unit="run", dynamic_ncols=True, disable=not sys.stderr.isatty())

    def run(self) -> int:
        """Train all unfinished runs; returns the exit code."""
        try:
            while (self.waiting or self.active) and not self.stop.asked():
                self._start_runs()
                self._collect()
                time.sleep(POLL_SECONDS)
        finally:
            self._stop_runs()
            self._bar.close()
        counts = ", ".join(f"{count} {state}" for state, count in self.ended.items())
        print(f"runs: {self._total}, {counts or 'none ended'}", flush=True)
        if asked := self.stop.asked():
            (self.directory / "stop").unlink(missing_ok=True)
            print(f"stopped by {asked}: the same command resumes it", file=sys.stderr, flush=True)
            return Stopped.exit_code
        if self.ended["failed"]:
            return TrainingFailed.exit_code
        return Stopped.exit_code if self.ended["stopped"] else 0

    def _start_runs(self) -> None:
        """Start runs as long as there is room; a run that another process is training waits."""
        for run in list(self.waiting):
            path = self.directory / run.name
            if is_done(path, run):
                self.waiting.remove(run)
                self._tell("done", run, f"{_result(path)}, before")
                continue
            if len(self.active) == self.jobs:
                return
            log = lock_log(path / LOG)
            if log is not None:
                self.waiting.remove(run)
                with log:
                    self.active.append(self._start(run, path, log))
            elif run.name not in self._elsewhere:
                self._elsewhere.add(run.name)
                self._bar.write(f"waiting  {run.name}: another process is training it", file=sys.stdout)

    def _start(self, run: SweepRun, path: Path, log: IO[bytes]) -> Child:
        command = train_command(run, path, self.launcher or [sys.executable])
        environment = dict(os.environ)
        if self.jobs > 1 and not self.launcher:
            from kaizen.parallel import usable_cores

            environment.setdefault("KAIZEN_THREADS", str(max(1, usable_cores() // self.jobs)))
        log_from, status = log.seek(0, os.SEEK_END), _version(path / "status.json")
        # In its own session, so that Ctrl-C reaches a run only through `_stop_runs`.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        return Child(run, process, path, log_from, status, time.monotonic())

    def _collect(self) -> None:
        """Take note of the runs that have ended."""
        for child in list(self.active):
            code = child.process.poll()
            if code is None:
                continue
            self.active.remove(child)
            if is_done(child.path, child.run):
                self._tell("done", child.run, f"{_result(child.path)}, {time.monotonic() - child.began:.0f} s")
            elif self._was_stopped(child, code):
                self._tell("stopped", child.run, "the same command resumes it")
            else:
                # Launchers replace the exit code.
                told = _status(child).get("exit_code") if self.launcher else code
                self.failed_with = told if told in (2, 3) else TrainingFailed.exit_code
                reason = _last_error(child.path / LOG, child.log_from) or "no output"
                self._tell("failed", child.run, f"exit code {code}: {reason} ({child.path / LOG})")

    def _was_stopped(self, child: Child, code: int) -> bool:
        if self.launcher and _status(child).get("state") == "stopped":
            return True  # launchers return different codes
        # A process that gets the signal before it has anything to save is ended by it.
        return code == Stopped.exit_code or (code == -signal.SIGTERM and self.stop.asked() is not None)

    def _stop_runs(self) -> None:
        """Ask the active runs to save and end, and wait for them."""
        for child in self.active:
            if not self.launcher:
                child.process.terminate()
        while self.active:
            for child in self.active if self.launcher else ():
                # Signals kill launchers and orphan their processes; a stop file from before a start does not count.
                (child.path / "stop").touch()
            self._collect()
            time.sleep(POLL_SECONDS)

    def _tell(self, state: str, run: SweepRun, text: str) -> None:
        self.ended[state] += 1
        self._bar.update()
        self._bar.write(f"{state:8} {run.name}: {text}", file=sys.stdout)
        sys.stdout.flush()


def is_done(path: Path, run: SweepRun) -> bool:
    """Whether a directory contains the finished run with this configuration and these files of own parts."""
    if _read(path / "status.json").get("state") != "done":
        return False
    try:
        tree = parse_yaml((path / "config.yaml").read_text(encoding="utf-8"))
        config = with_numbers(run.config, tree)
        if changed_code(config.model_dump(), tree.get("code", {})):
            return False
    except (OSError, ValueError, AttributeError):
        config = run.config
    return _read(path / "results.json").get("config_hash") == config.hash()


def _version(file: Path) -> tuple[int, int] | None:
    """Identity of a file's content, for files that are replaced as a whole; None if there is no file."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _status(child: Child) -> dict[str, Any]:
    """The status that a run wrote since this start; empty if the file is from an earlier start."""
    file = child.path / "status.json"
    return {} if _version(file) == child.status else _read(file)


def _result(path: Path) -> str:
    accuracy = _read(path / "results.json").get("readers", {}).get("classifier", {}).get("final_accuracy")
    return "no final accuracy" if accuracy is None else f"final accuracy {100 * accuracy:.1f} %"


def _read(file: Path) -> dict[str, Any]:
    """A JSON object; empty if none can be read."""
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return held if isinstance(held, dict) else {}


def lock_log(file: Path) -> IO[bytes] | None:
    """The log opened for appending, locked for this process and its children; None: another process has the lock."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        log = open(file, "ab")  # noqa: SIM115
    except OSError as error:
        raise ConfigError("--run.dir", f"{file} cannot be written ({error.strerror})") from None
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.close()
        return None
    except OSError as error:
        log.close()
        raise ConfigError("--run.dir", f"{file} cannot be locked ({error.strerror})") from None
    return log


def _last_error(log: Path, start: int) -> str:
    """The last line with an error, or else the last line, of a log from a byte position on."""
    with open(log, "rb") as file:
        file.seek(start)
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1]
