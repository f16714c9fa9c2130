"""log.jsonl, its tracker, and the progress of a run on the terminal."""

import json
import os
import sys
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kaizen.config.schema import Config
from kaizen.errors import ConfigError
from kaizen.parallel import Parallel
from kaizen.run.checkpoint import write_text, writing
from kaizen.run.progress import Progress

FIRST_STEP = "first step          {:.1f} s after the program began"


def cut_log(file: Path, step: int) -> None:
    """Drop lines after a step of the run: the steps that will be repeated from a restored checkpoint."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # a line cut short by a kill
    write_text(file, "".join(kept))


def wandb_id(directory: Path) -> str:
    """The id of a run at Weights & Biases: made at the first start and kept, so that later starts add to that run."""
    file = directory / "wandb-id.txt"
    with suppress(OSError, UnicodeDecodeError):
        if held := file.read_text(encoding="utf-8").strip():
            return held
    write_text(file, f"{uuid.uuid4().hex[:12]}\n")
    return wandb_id(directory)


class RunLog:
    """Log and progress of the whole run, written by one process.

    Args:
        steps, done: steps of the run, and how many of them are done.
        lines: print progress lines where there is no terminal.

    Raises:
        ConfigError: the tracker cannot start.
    """

    def __init__(
        self, directory: Path, config: Config, parallel: Parallel, *, steps: int, done: int, lines: bool = True
    ) -> None:
        self.parallel = parallel
        if 0 < done < steps:
            parallel.announce(f"resumed             after step {done} of {steps}")
        file = directory / "log.jsonl"
        self._file = open(file, "a", encoding="utf-8") if parallel.is_main else None  # noqa: SIM115
        self.progress = Progress(steps, done, bar=parallel.is_main, lines=parallel.is_main and lines)
        self._tracking = config.log.wandb != "disabled"
        if self._tracking:
            self._start_wandb(directory, config)

    def _start_wandb(self, directory: Path, config: Config) -> None:
        options = {"name": config.log.name or directory.name, "mode": config.log.wandb, "dir": str(directory)}
        if self.parallel.is_main:
            options |= {"id": wandb_id(directory), "resume": "allow"}
        try:
            self.parallel.accelerator.init_trackers(
                config.log.project, config=config.model_dump(mode="json"), init_kwargs={"wandb": options}
            )
        except Exception as error:  # wandb raises its own errors for a missing key, an invalid key, no network
            reason = " ".join(str(error).split())
            raise ConfigError(
                "log.wandb", f"is {config.log.wandb!r} and could not start ({reason}); allowed: offline"
            ) from error

    def line(self, record: Mapping[str, Any]) -> None:
        """Append one line to log.jsonl (and the tracker); `record` contains `step`."""
        if self._file is not None:
            with writing(Path(self._file.name)):
                self._file.write(json.dumps(record) + "\n")
                self._file.flush()
        if self._tracking:
            values = {k: v for k, v in record.items() if isinstance(v, int | float)}
            try:
                self.parallel.accelerator.log(values, step=record["step"])
            except Exception as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """Continue without the tracker: log.jsonl contains everything that it would show."""
        self._tracking = False
        print(f"note: wandb failed and is left out from here on ({error})", file=sys.stderr, flush=True)

    def sync(self) -> None:
        """Flush the lines to disk before anything is saved at the same step."""
        if self._file is not None:
            with writing(Path(self._file.name)):
                os.fsync(self._file.fileno())

    def say(self, text: str) -> None:
        """Print a line from one process."""
        if self.parallel.is_main:
            self.progress.say(text)

    def close(self) -> None:
        """Close file, bar and tracker."""
        self.progress.close()
        if self._file is not None:
            with suppress(OSError):  # a full disk was reported when the line was written
                self._file.close()
        if self._tracking:
            try:
                # Not accelerate's end_training, which also destroys the process group.
                for tracker in self.parallel.accelerator.trackers:
                    tracker.finish()
            except Exception as error:
                self._give_up(error)
