"""The run directory: whose run it is, what is done, where it goes on."""

import json
from pathlib import Path
from typing import Any

import yaml

from kaizen.checkpoint import newest_whole, prune, read_state, tidy, write_json, write_text
from kaizen.config import Config, flatten
from kaizen.errors import ConfigError
from kaizen.log import cut_log, environment, write_status
from kaizen.parallel import Parallel
from kaizen.state import task_directory


class RunDirectory:
    """A directory that holds one run, new or to be continued.

    Raises:
        ConfigError: it holds a run of another configuration, or run.resume does not allow what is found.
    """

    def __init__(self, path: Path, config: Config, recipe: str, parallel: Parallel) -> None:
        self.path, self.config, self.parallel = path, config, parallel
        self.position = (0, 0)
        parallel.on_main(lambda: self._open(recipe))

    def _open(self, recipe: str) -> None:
        file = self.path / "config.yaml"
        resume = self.config.run.resume
        if file.exists():
            if resume == "never":
                raise ConfigError(
                    "run.resume", f"is 'never', but {self.path} holds a run; allowed: another run.dir, or auto"
                )
            self._compare(file)
        elif resume == "must":
            raise ConfigError("run.resume", f"is 'must', but {self.path} holds no run; allowed: auto, never")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for folder in ("tasks", "checkpoints"):
                tidy(self.path / folder)
            dumped = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False, default_flow_style=None)
            write_text(file, f"# recipe: {recipe}\n{dumped}")
            self._write_environment()
        except OSError as error:
            raise ConfigError("run.dir", f"{self.path} cannot be written ({error.strerror})") from None

    def _write_environment(self) -> None:
        file, now = self.path / "environment.json", environment(self.parallel)
        if file.exists():
            try:
                before = json.loads(file.read_text())
            except ValueError:
                before = {}
            for key in ("versions", *self.parallel.setting()):
                if before.get(key, now[key]) != now[key]:
                    print(f"note: {key} was {before[key]} and is now {now[key]}: the run goes on, not bit for bit")
        write_json(file, now)

    def _compare(self, file: Path) -> None:
        try:
            held = flatten(yaml.safe_load(file.read_text()))
        except (OSError, yaml.YAMLError) as error:
            raise ConfigError(str(file), f"cannot be read ({' '.join(str(error).split())})") from None
        wanted = self.config.fixed()
        differ = [key for key, value in wanted.items() if key not in held or held[key] != value]
        differ += [
            key
            for key in held
            if key.split(".")[0] != "log" and key not in flatten(self.config.model_dump(mode="json"))
        ]
        if differ:
            found = "; ".join(f"{key} was {held.get(key)!r} and is now {wanted.get(key)!r}" for key in differ[:5])
            more = f" (and {len(differ) - 5} more)" if len(differ) > 5 else ""
            raise ConfigError("run.dir", f"{self.path} holds a run of another configuration: {found}{more}")

    def tasks_done(self) -> int:
        """Tasks whose end state is there and whole, the same on every process.

        Raises:
            ConfigError: names a damaged file.
        """
        done = 0

        def count() -> None:
            nonlocal done
            while task_directory(self.path, done).exists():
                read_state(task_directory(self.path, done))
                done += 1

        self.parallel.on_main(count)
        return self.parallel.broadcast(done)

    def train_seconds(self, task: int) -> float:
        """Seconds that a finished task trained."""
        return float(read_state(task_directory(self.path, task))["train_seconds"])

    def find_checkpoint(self, task: int) -> tuple[Path, dict[str, Any]] | None:
        """The newest whole checkpoint of a task, the same on every process."""
        found = None
        if self.parallel.is_main:
            found = newest_whole(self.path / "checkpoints", task)
        return self.parallel.broadcast(found)

    def prune_checkpoints(self) -> None:
        """Delete the oldest checkpoints beyond run.keep_checkpoints, and any of tasks still to come."""
        keep, task = self.config.run.keep_checkpoints, self.position[0]
        self.parallel.on_main(lambda: prune(self.path / "checkpoints", keep, task))

    def cut_log(self, step: int) -> None:
        """Drop the log lines of steps that will be done again."""
        self.parallel.on_main(lambda: cut_log(self.path / "log.jsonl", step))

    def write_status(self, state: str, exit_code: int | None = None, reason: str | None = None) -> None:
        """Write status.json at the current position."""
        if self.parallel.is_main:
            task, step = self.position
            write_status(self.path, state, exit_code=exit_code, task=task, step=step, reason=reason)
