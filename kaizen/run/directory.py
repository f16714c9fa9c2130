"""The run directory: its owner, its configuration, its progress and where a run resumes."""

import json
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any

from kaizen.config.schema import LATER_KEYS, Config, fixed_keys, flatten, hash_keys, header
from kaizen.config.types import AUTO
from kaizen.config.yaml import dump_yaml, parse_yaml
from kaizen.errors import ConfigError, DamagedError
from kaizen.parallel import Parallel
from kaizen.parallel.peers import Failure
from kaizen.plugins import changed_code, code_of, copies_of, short
from kaizen.run.checkpoint import STATE, newest_intact, read_state, tidy, write_bytes, write_text
from kaizen.run.environment import read_environment
from kaizen.run.lock import LOCK, RunLock, holds
from kaizen.run.places import CHECKPOINT, TASK_END, checkpoint_directory, task_directory
from kaizen.run.status import STATUS_SECONDS, read_position, timestamp, write_status

LEFT_SECONDS = 60
"""Age from which temporary results count as left by a killed process; newer ones may be those of `kaizen eval`."""


class RunDirectory:
    """The directory of one run, new or to be resumed; `lock` creates it, and `claim` writes the configuration into it.

    With `reading`, a run of an earlier version is accepted, which lacks keys of this one.

    Raises:
        ConfigError: it contains a run of another configuration, or run.resume does not allow what is found.
    """

    def __init__(self, path: Path, config: Config, parallel: Parallel, *, reading: bool = False) -> None:
        self.path, self.config, self.parallel, self.reading = path, config, parallel, reading
        self._hash_of_file: str | None = None
        self.seconds_left: float | None = None
        self._ended = False
        self._lock: RunLock | None = None
        self._token: str | None = None
        self._made: list[Path] = []
        self._next_update = 0.0
        self._update: Future[None] | None = None
        self._updates = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kaizen-status")
        self._ours, self.position = parallel.on_main(self._inspect)

    def _inspect(self) -> tuple[bool, tuple[int, int]]:
        """Whether the directory contains this run, and the task and step where it stands."""
        file, resume = self.path / "config.yaml", self.config.run.resume
        try:
            held = file.exists() or any(self.path.glob("tasks/task-*"))
        except OSError as error:
            raise ConfigError("run.dir", f"{self.path} cannot be read ({error.strerror})") from None
        if held and resume == "never":
            raise ConfigError(
                "run.resume", f"is 'never', but {self.path} contains a run; allowed: another run.dir, or auto"
            )
        if not held and resume == "must":
            raise ConfigError("run.resume", f"is 'must', but {self.path} contains no run; allowed: auto, never")
        if not file.exists():
            return False, (0, 0)
        self._compare(file)
        return True, read_position(self.path)

    def claim(self, recipe: str, preset: str | None, data: str) -> None:
        """Write the configuration and the status "running".

        Args:
            data: digest of the images and labels it trains on.

        Raises:
            ConfigError: the run began with different data, or the directory cannot be written.
        """
        self.parallel.agree("the files of own parts", lambda: str(code_of(self.config.tree())))
        self.parallel.on_main(lambda: self._claim(recipe, preset, data))
        self._ours = True

    def _claim(self, recipe: str, preset: str | None, data: str) -> None:
        try:
            self._inspect()  # again, as numbers have replaced `auto`
            if read_environment(self.path / "environment.json").get("data", data) != data:
                problem = f"{self.config.data.source} contains other images or labels than {self.path} began with"
                raise ConfigError("data.source", f"{problem}; allowed: the original data, or another run.dir")
            self._tidy()
            tree = self.config.tree()
            for name, text in copies_of(tree).items():
                (self.path / "code" / name).parent.mkdir(parents=True, exist_ok=True)
                write_bytes(self.path / "code" / name, text)
            dumped = dump_yaml(tree | ({"code": code} if (code := code_of(tree)) else {}))
            write_text(self.path / "config.yaml", header(recipe, preset) + dumped)
        except OSError as error:
            raise ConfigError("run.dir", f"{self.path} cannot be written ({error.strerror})") from None
        self._ours, self._made = True, []
        self.write_status("running")

    def _tidy(self) -> None:
        """Remove what a killed run left half written."""
        for folder in ("tasks", "checkpoints"):
            tidy(self.path / folder)
        for file in self.path.glob(".*.tmp"):
            with suppress(FileNotFoundError):
                if not file.name.startswith(".results.") or abs(time.time() - file.stat().st_mtime) > LEFT_SECONDS:
                    file.unlink()

    def _compare(self, file: Path) -> None:
        try:
            tree = parse_yaml(file.read_text(encoding="utf-8"))
            code = dict(tree.pop("code", {}))
            held = LATER_KEYS | {key: short(value) for key, value in flatten(tree).items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ConfigError(str(file), f"cannot be read ({error})") from None
        wanted, known = self.config.fixed(), flatten(self.config.model_dump(mode="json"))
        # Extensions are taken from the file before (see kaizen.data.chapters).
        held = {key: value for key, value in held.items() if key.split(".")[0] != "extensions"}
        missing = [key for key in wanted if key not in held]
        if self.reading:
            self._hash_of_file = hash_keys(fixed_keys(held))
        differ = [key for key, value in wanted.items() if key in held and value not in (held[key], AUTO)]
        differ += [key for key in held if key.split(".")[0] != "log" and key not in known]
        if differ:
            found = "; ".join(f"{key} was {held.get(key)!r} and is now {wanted.get(key)!r}" for key in differ[:5])
            more = f" (and {len(differ) - 5} more)" if len(differ) > 5 else ""
            problem = f"{self.path} contains a run of another configuration: {found}{more}; allowed: another run.dir"
            raise ConfigError("run.dir", problem)
        if missing and not self.reading:
            more = f" and {len(missing) - 3} more keys" if len(missing) > 3 else ""
            problem = f"{self.path} contains a run of an earlier version, which had no {', '.join(missing[:3])}{more}"
            raise ConfigError("run.dir", f"{problem}; allowed: that version, or another run.dir")
        self._compare_code(code)

    def _compare_code(self, held: dict[str, str]) -> None:
        """Refuse to resume with own parts whose file is not what it was; a mere reading says so.

        A run that has saved nothing yet begins anew.
        """
        if not any(next(self.path.glob(f"{part}/*"), None) for part in ("tasks", "checkpoints")):
            return
        for name, (before, now) in changed_code(self.config.model_dump(), held).items():
            problem = f"{name} is no longer what {self.path} was trained with (SHA-256 {before[:12]}, now {now[:12]})"
            if self.reading or self.config.run.allow_changed_code:
                print(f"note: {problem}", flush=True)
                continue
            allowed = "the file as it was, another run.dir, or true to resume all the same"
            raise ConfigError("run.allow_changed_code", f"is false, but {problem}; allowed: {allowed}")

    def _read_task_end(self, task: int) -> dict[str, Any]:
        path = task_directory(self.path, task)
        return self._checked(path, read_state(path, TASK_END), lambda found, step: found == task)

    def _read_checkpoint(self, path: Path) -> dict[str, Any]:
        held = read_state(path, CHECKPOINT)
        return self._checked(path, held, lambda task, step: checkpoint_directory(self.path, task, step) == path)

    def _checked(self, path: Path, state: dict[str, Any], belongs: Callable[[Any, Any], bool]) -> dict[str, Any]:
        """The state, if its numbers match its path; those of a copied or renamed directory do not."""
        task, step, seconds = (state.get(key) for key in ("task", "step", "train_seconds"))
        numbers = type(task) is type(step) is int and isinstance(seconds, int | float) and 0 <= seconds < math.inf
        if not numbers or not belongs(task, step):
            found = f"it was saved in task {task}, step {step}, after {seconds} s of training"
            raise DamagedError(str(path / STATE), f"does not belong to {path.name}: {found}")
        allowed = {self.config.hash(extensions=count) for count in range(len(self.config.extensions) + 1)}
        if state.get("config_hash") not in allowed | {self._hash_of_file}:
            problem = f"{path} was saved by a run of another configuration (its config_hash differs)"
            raise ConfigError("run.dir", f"{problem}; allowed: another run.dir")
        return state

    def tasks_done(self) -> int:
        """Number of tasks whose end state is complete, the same on every process.

        Raises:
            ConfigError: a file is damaged.
        """

        def count() -> int:
            done = 0
            while (path := task_directory(self.path, done)).exists():
                try:
                    self._read_task_end(done)
                except DamagedError as error:
                    raise ConfigError(error.key, f"{error.problem}; delete {path} to train this task again") from None
                done += 1
            return done

        return self.parallel.on_main(count)

    def train_seconds(self, task: int) -> float:
        """Seconds that a finished task trained, the same on every process."""
        file = task_directory(self.path, task) / STATE
        return self.parallel.on_main(lambda: float(json.loads(file.read_text(encoding="utf-8"))["train_seconds"]))

    def world_size(self, task: int) -> int:
        """Number of processes that trained a finished task."""
        return int(read_state(task_directory(self.path, task))["world_size"])

    def find_checkpoint(self, task: int) -> tuple[Path, dict[str, Any]] | None:
        """The newest intact checkpoint of a task, the same on every process."""
        folder = self.path / "checkpoints"
        return self.parallel.on_main(lambda: newest_intact(folder, task, self._read_checkpoint))

    def lock(self) -> None:
        """Create the directory and keep other processes from training in it until `release`.

        Raises:
            ConfigError: another process trains here, the directory cannot be written, or a process does not see it.
        """
        try:
            self._token, self._ours, self.position = self.parallel.on_main(self._take)
            self.parallel.await_file(self.path / LOCK)
        except BaseException:
            self.release()
            raise

    def _take(self) -> tuple[str, bool, tuple[int, int]]:
        """Create and lock the directory; the lock's token, and what `_inspect` finds."""
        self._made = [folder for folder in (self.path, *self.path.parents) if not os.path.lexists(folder)]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError("run.dir", f"{self.path} cannot be written ({error.strerror})") from None
        self._lock = RunLock(self.path)
        # Again, as another run may have begun and ended here since the first look.
        return self._lock.token, *self._inspect()

    def check_lock(self) -> None:
        """Raise a TrainingFailed if another process has taken the directory over."""
        if self._lock:
            self._lock.check()

    def release(self) -> None:
        """Release the directory at a run's end; one created for a run that never began is removed."""
        if self._lock:
            self._lock.release()
        self._updates.shutdown(wait=False)
        for folder in self._made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()

    def _is_held(self) -> bool:
        """Whether the directory still belongs to this run, and no other process has taken it over."""
        with suppress(OSError):
            return self._ours and (self._token is None or holds(self.path, self._token))
        return False

    def write_failure(self, failure: Failure) -> None:
        """Write the failure to status.json, on the process that reports it; a full disk does not hide the reason."""
        self._end_updates(2)  # a disk that hangs must not keep a failed process
        if failure.reports and self._is_held():
            with suppress(OSError):
                self._write("failed", failure.code, failure.reason)

    def write_status(self, state: str, exit_code: int | None = None, reason: str | None = None) -> None:
        """Write status.json if the directory belongs to this run; "stopped" also deletes the request to stop."""
        if state != "running":
            self._end_updates()
        if self.parallel.is_main and self._is_held():
            self._write(state, exit_code, reason)
            if state == "stopped":
                (self.path / "stop").unlink(missing_ok=True)

    def follow(self, seconds_left: float | None) -> None:
        """Update status.json in the background, at most every STATUS_SECONDS; no step waits for the disk.

        Args:
            seconds_left: estimated seconds until the run is done; None if unknown.
        """
        self.seconds_left = seconds_left
        written = self._update is None or self._update.done()
        if self.parallel.is_main and written and not self._ended and time.monotonic() >= self._next_update:
            self._next_update = time.monotonic() + STATUS_SECONDS
            self._update = self._updates.submit(self._write_update)

    def _write_update(self) -> None:
        with suppress(OSError):  # the log and the checkpoints report a full disk
            if not self._ended and self._is_held():
                self._write("running")

    def _end_updates(self, seconds: float | None = None) -> None:
        """Stop the updates, so that none replaces the final status; wait for one under way, at most so many seconds."""
        self._ended = True
        if self._update:
            wait([self._update], timeout=seconds)

    def _write(self, state: str, exit_code: int | None = None, reason: str | None = None) -> None:
        (task, step), left = self.position, self.seconds_left
        content = {"state": state, "exit_code": exit_code, "task": task, "step": step, "updated": timestamp()}
        write_status(self.path, content | {"seconds_left": None if left is None else round(left), "reason": reason})
