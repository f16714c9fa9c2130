"""The run directory: whose run it is, what is done, where it goes on."""

import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from kaizen.config.schema import Config, flatten, header
from kaizen.config.types import AUTO
from kaizen.config.yaml import dump_yaml, parse_yaml
from kaizen.errors import ConfigError, DamagedError
from kaizen.parallel import Parallel
from kaizen.parallel.peers import Failure
from kaizen.run.checkpoint import STATE, newest_whole, prune, read_state, tidy, write_json, write_text
from kaizen.run.lock import RunLock, holds
from kaizen.run.log import cut_log, environment, read_position, write_status
from kaizen.run.places import CHECKPOINT, TASK_END, checkpoint_directory, task_directory

LEFT_SECONDS = 60
"""Age from which temporary results are those of a killed process: `kaizen eval` may be writing some beside a run."""


class RunDirectory:
    """A directory that holds one run, new or to be continued; nothing is written before `lock` and `claim`.

    Raises:
        ConfigError: it holds a run of another configuration, or run.resume does not allow what is found.
    """

    def __init__(self, path: Path, config: Config, parallel: Parallel) -> None:
        self.path, self.config, self.parallel = path, config, parallel
        self.position = (0, 0)
        self._ours = False
        self._lock: RunLock | None = None
        self._token: str | None = None
        parallel.on_main(self._inspect)
        self._ours, self.position = parallel.broadcast((self._ours, self.position))

    def _inspect(self) -> None:
        file, resume = self.path / "config.yaml", self.config.run.resume
        try:
            held = file.exists() or any(self.path.glob("tasks/task-*"))
        except OSError as error:
            raise ConfigError("run.dir", f"{self.path} cannot be read ({error.strerror})") from None
        if held and resume == "never":
            raise ConfigError(
                "run.resume", f"is 'never', but {self.path} holds a run; allowed: another run.dir, or auto"
            )
        if not held and resume == "must":
            raise ConfigError("run.resume", f"is 'must', but {self.path} holds no run; allowed: auto, never")
        if file.exists():
            self._compare(file)
            self._ours = True
            self.position = read_position(self.path)

    def claim(self, recipe: str, preset: str | None, data: str) -> None:
        """Write whose run this is, and that it is running.

        Args:
            data: digest of the images and labels it trains on.

        Raises:
            ConfigError: the run began with other data, or the directory cannot be written or is not seen by all.
        """
        self.parallel.on_main(lambda: self._claim(recipe, preset, data))
        self._ours = True
        self._token = self.parallel.broadcast(self._lock.token if self._lock else None)
        self.parallel.await_file(self.path / "config.yaml")

    def _claim(self, recipe: str, preset: str | None, data: str) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self._lock is None:
                self._lock = RunLock(self.path)
            # Another run may have begun and ended here since the first look, and `auto` has become numbers.
            self._inspect()
            self._tidy()
            dumped = dump_yaml(self.config.model_dump(mode="json"))
            write_text(self.path / "config.yaml", header(recipe, preset) + dumped)
            self._write_environment(data)
        except OSError as error:
            raise ConfigError("run.dir", f"{self.path} cannot be written ({error.strerror})") from None
        self._ours = True
        self.write_status("running")

    def _tidy(self) -> None:
        """Take away what a killed run left half written."""
        for folder in ("tasks", "checkpoints"):
            tidy(self.path / folder)
        for file in self.path.glob(".*.tmp"):
            with suppress(FileNotFoundError):
                if not file.name.startswith(".results.") or abs(time.time() - file.stat().st_mtime) > LEFT_SECONDS:
                    file.unlink()

    def _write_environment(self, data: str) -> None:
        file, now = self.path / "environment.json", {**environment(self.parallel), "data": data}
        if file.exists():
            try:
                before = dict(json.loads(file.read_text()))
            except (ValueError, TypeError):
                before = {}
            if before.get("data", data) != data:
                problem = f"{self.config.data.source} holds other images or labels than {self.path} began with"
                raise ConfigError("data.source", f"{problem}; allowed: those, or another run.dir")
            for key in ("versions", *self.parallel.setting()):
                if before.get(key, now[key]) != now[key]:
                    print(f"note: {key} was {before[key]} and is now {now[key]}: the run goes on, not bit for bit")
        write_json(file, now)

    def _compare(self, file: Path) -> None:
        try:
            held = flatten(parse_yaml(file.read_text()))
        except (OSError, ValueError) as error:
            raise ConfigError(str(file), f"cannot be read ({error})") from None
        wanted = self.config.fixed()
        differ = [key for key, value in wanted.items() if key not in held or value not in (held[key], AUTO)]
        differ += [
            key
            for key in held
            if key.split(".")[0] != "log" and key not in flatten(self.config.model_dump(mode="json"))
        ]
        if differ:
            found = "; ".join(f"{key} was {held.get(key)!r} and is now {wanted.get(key)!r}" for key in differ[:5])
            more = f" (and {len(differ) - 5} more)" if len(differ) > 5 else ""
            problem = f"{self.path} holds a run of another configuration: {found}{more}; allowed: another run.dir"
            raise ConfigError("run.dir", problem)

    def _read_task_end(self, task: int) -> dict[str, Any]:
        path = task_directory(self.path, task)
        return self._checked(path, read_state(path, TASK_END), lambda found, step: found == task)

    def _read_checkpoint(self, path: Path) -> dict[str, Any]:
        held = read_state(path, CHECKPOINT)
        return self._checked(path, held, lambda task, step: checkpoint_directory(self.path, task, step) == path)

    def _checked(self, path: Path, state: dict[str, Any], belongs: Callable[[Any, Any], bool]) -> dict[str, Any]:
        """A state whose numbers are those of its place, as those of a copied or renamed directory are not."""
        task, step, seconds = (state.get(key) for key in ("task", "step", "train_seconds"))
        numbers = type(task) is type(step) is int and isinstance(seconds, int | float) and 0 <= seconds < math.inf
        if not numbers or not belongs(task, step):
            found = f"it is of task {task}, step {step}, after {seconds} s of training"
            raise DamagedError(str(path / STATE), f"does not belong to {path.name}: {found}")
        if state.get("config_hash") != self.config.hash():
            problem = f"{path} was saved by a run of another configuration (its config_hash is another)"
            raise ConfigError("run.dir", f"{problem}; allowed: another run.dir")
        return state

    def tasks_done(self) -> int:
        """Tasks whose end state is there and whole, the same on every process.

        Raises:
            ConfigError: names a damaged file.
        """
        done = 0

        def count() -> None:
            nonlocal done
            while (path := task_directory(self.path, done)).exists():
                try:
                    self._read_task_end(done)
                except DamagedError as error:
                    raise ConfigError(error.key, f"{error.problem}; delete {path} to train this task again") from None
                done += 1

        self.parallel.on_main(count)
        return self.parallel.broadcast(done)

    def train_seconds(self, task: int) -> float:
        """Seconds that a finished task trained, the same on every process."""
        held: list[float] = []

        def read() -> None:
            held.append(float(json.loads((task_directory(self.path, task) / STATE).read_text())["train_seconds"]))

        self.parallel.on_main(read)
        return self.parallel.broadcast(held[0] if held else 0.0)

    def world_size(self, task: int) -> int:
        """Processes that a finished task was trained by."""
        return int(read_state(task_directory(self.path, task))["world_size"])

    def find_checkpoint(self, task: int) -> tuple[Path, dict[str, Any]] | None:
        """The newest whole checkpoint of a task, the same on every process."""
        found = None

        def find() -> None:
            nonlocal found
            found = newest_whole(self.path / "checkpoints", task, self._read_checkpoint)

        self.parallel.on_main(find)
        return self.parallel.broadcast(found)

    def prune_checkpoints(self, task: int) -> None:
        """Delete the oldest checkpoints beyond run.keep_checkpoints, and any of tasks after this one."""
        prune(self.path / "checkpoints", self.config.run.keep_checkpoints, task)

    def cut_log(self, step: int) -> None:
        """Drop the log lines of steps that will be done again."""
        self.parallel.on_main(lambda: cut_log(self.path / "log.jsonl", step))

    def lock(self) -> None:
        """Keep other processes from training here until `release`; a directory still to be made waits for `claim`.

        Raises:
            ConfigError: another process trains here.
        """

        def take() -> None:
            if self.path.is_dir():
                self._lock = RunLock(self.path)

        self.parallel.on_main(take)

    def check_lock(self) -> None:
        """Raise a TrainingFailed if another process has taken the directory over."""
        if self._lock:
            self._lock.check()

    def release(self) -> None:
        """Let other processes have the directory, at a run's end."""
        if self._lock:
            self._lock.release()

    def _is_held(self) -> bool:
        """Whether the directory is this run's; one that was taken over meanwhile is another's."""
        with suppress(OSError):
            return self._ours and (self._token is None or holds(self.path, self._token))
        return False

    def write_failure(self, failure: Failure) -> None:
        """Write status.json from the process that has to tell; that the disk is full as well is not the news."""
        if failure.tells and self._is_held():
            with suppress(OSError):
                task, step = self.position
                write_status(self.path, "failed", exit_code=failure.code, task=task, step=step, reason=failure.reason)

    def write_status(self, state: str, exit_code: int | None = None, reason: str | None = None) -> None:
        """Write status.json at the current position, if the directory is this run's; a stop that was served is over."""
        if self.parallel.is_main and self._is_held():
            task, step = self.position
            write_status(self.path, state, exit_code=exit_code, task=task, step=step, reason=reason)
            if state == "stopped":
                (self.path / "stop").unlink(missing_ok=True)
