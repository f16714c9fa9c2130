"""A run from its first to its last task: train, choose the memory, save, evaluate."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

import kaizen
from kaizen.config.schema import Config
from kaizen.data.chapters import held_extensions, held_store, open_chapters
from kaizen.data.load import Stream, load_stream
from kaizen.errors import ConfigError, KaizenError, Stopped, explained
from kaizen.evaluation.evaluator import Evaluator
from kaizen.evaluation.results import Results
from kaizen.evaluation.table import show_results
from kaizen.model.networks.encoders import build_encoder
from kaizen.model.networks.fit import check_deterministic
from kaizen.model.pretrained import keep_pretrained, recorded
from kaizen.parallel import Parallel, check_encoder, synchronize
from kaizen.run.checkpoint import prune
from kaizen.run.directory import RunDirectory
from kaizen.run.environment import record_start, versions
from kaizen.run.log import FIRST_STEP, RunLog, cut_log
from kaizen.run.measures import TaskMeans
from kaizen.run.places import checkpoint_directory, task_directory
from kaizen.run.progress import Clock
from kaizen.run.stop import STOP_STEPS, StopRequest
from kaizen.run.writer import Writer
from kaizen.training.callbacks import Callbacks
from kaizen.training.defaults import suit_chapters
from kaizen.training.measures import finite_losses
from kaizen.training.plan import describe, plan_chapters, term_weights
from kaizen.training.recording import check_recording
from kaizen.training.remember import check_budgets
from kaizen.training.state import TaskState
from kaizen.training.step import Stepper


class Trainer:
    """A run in its directory: `run()` trains or resumes it.

    Args:
        recipe, preset: names of the recipe and of the preset laid over it, for the record.
        config: the checked configuration; path: the run directory.
        stop: notices requests to stop; notes: lines on the configuration, for the user; callbacks: see `Callbacks`.

    Raises:
        ConfigError: the directory or the launch does not fit the configuration.
    """

    def __init__(
        self,
        recipe: str,
        config: Config,
        path: Path,
        stop: StopRequest,
        preset: str | None = None,
        notes: Sequence[str] = (),
        callbacks: Sequence[Any] = (),
    ) -> None:
        self.recipe, self.preset, self.config, self.path, self.stop = recipe, preset, config, path, stop
        self.notes, self.versions, self.writer, self._first = notes, versions(), Writer(), True
        tracker = "wandb" if config.log.wandb != "disabled" else None
        self.parallel = Parallel(log_with=tracker, deterministic=config.run.deterministic)
        self.callbacks = Callbacks(callbacks, active=self.parallel.is_main)
        held, store = self.parallel.on_main(lambda: (held_extensions(config, path), held_store(config, path)))
        self.config = config = config.with_store(*store).model_copy(update={"extensions": held})
        self.directory = RunDirectory(path, config, self.parallel)
        self.directory.lock()
        self.parallel.watch(self.directory.write_failure, lambda: stop.signalled)

    def run(self) -> None:
        """Train every task that is not done, evaluate after each, and print the results.

        Raises:
            ConfigError: data or stream do not fit the configuration, or a saved file is damaged.
            Stopped: the run was asked to stop, and everything is saved.
            TrainingFailed: a loss is not finite, or another process failed; the last checkpoint is kept.
        """
        try:
            self._prepare()
            self._run()
            self.parallel.on_main(lambda: show_results(self.results.content, self.path / "results.svg"))
            self.directory.seconds_left = 0.0
            self.directory.write_status("done", 0)
        except Stopped as stopped:
            self._end_stopped(stopped)
            raise
        except Exception as error:
            reason = explained(error)
            self._end_failed(reason)
            if reason is error:
                raise
            raise reason from error
        finally:
            self.writer.close()
            self.directory.release()
        self.parallel.close()
        self.parallel.announce(f"done: results.json, log.jsonl and all other files of the run are in {self.path}")

    def load(self) -> Stream:
        """The run's own data, cut into tasks; a ConfigError if they are missing or do not fit."""
        return load_stream(self.config, self.stop.check)

    def _end_stopped(self, stopped: Stopped) -> None:
        agreed = self.stop.deferred
        self.stop.defer()
        # Before training each process ends by itself at a signal, which a launcher also sends after another one died.
        if not agreed and (failure := self.parallel.leave()):
            self.directory.write_failure(failure)
            raise failure.error() from stopped
        self.directory.write_status("stopped", stopped.exit_code, str(stopped))
        if agreed:
            self.parallel.close()

    def _end_failed(self, error: Exception) -> None:
        # From here on signals are not requests to stop: a launcher ends the other processes with them.
        self.stop.defer()
        failure = self.parallel.failure(error)
        self.directory.write_failure(failure)
        if failure.follows:
            raise failure.error() from error
        if isinstance(error, KaizenError):
            error.everywhere = failure.reports

    def _prepare(self) -> None:
        """Check everything that can be refused, before any work."""
        config = self.config
        check_deterministic(config, self.parallel.device.type)
        recording = check_recording(config, self.parallel)
        chapters = self.parallel.main_first(lambda: open_chapters(config, self.path, self.load, self.stop.check))
        self.parallel.agree(f"the data of {config.data.source}", chapters.digest)
        self.chapters, chosen = suit_chapters(chapters)
        chapters, self.tasks = self.chapters, self.chapters.tasks
        self.config = self.directory.config = config = chapters.parts[0].config
        self.plan = plan_chapters(chapters, *(sizes := (self.parallel.world, self.parallel.accumulation)))
        if self.parallel.sharded:
            check_encoder(build_encoder(config.encoder, config.data.image_size), config.encoder.name)
        elif config.teacher.shard:
            raise ConfigError("teacher.shard", "is true; allowed without FSDP (accelerate_configs/fsdp2.yaml): false")
        check_budgets(chapters)
        self.evaluator = Evaluator(config, chapters, self.parallel)
        chosen += keep_pretrained(config, self.path, self.parallel)
        self.directory.claim(self.recipe, self.preset, chapters.parts[0].record.digest)
        self.parallel.on_main(lambda: chapters.write(self.path))
        self.stop.defer()
        origin = {"recipe": self.recipe, "preset": self.preset, "config_hash": config.hash()}
        # One process reads for all: `kaizen eval` may replace the file between two reads.
        self.results = self.parallel.on_main(lambda: Results(self.path / "results.json", origin, config, chapters))
        self.parallel.announce(f"run directory       {self.path}")
        chosen += [recording] if recording else []
        for line in (*self.notes, *chapters.describe(), *describe(config, self.plan, *sizes), *chosen):
            self.parallel.announce(line)

    def _run(self) -> None:
        done, readers = self.directory.tasks_done(), self.config.eval.readers
        self.chapters.check_from(done)
        self.results.keep(done)
        steps_done = self.plan.tasks[done].first_step if done < len(self.tasks) else self.plan.steps
        if found := self.directory.find_checkpoint(done):
            steps_done = found[1]["step"]
        self.directory.position = (min(done, len(self.tasks) - 1), steps_done)
        self.parallel.on_main(lambda: cut_log(self.path / "log.jsonl", steps_done))
        if done < len(self.tasks):
            start = self.path / "environment.json", self.parallel, self.chapters.parts[0].record.digest, steps_done
            self.parallel.on_main(lambda: record_start(*start, weights=recorded(self.path)))
        self.log = RunLog(self.path, self.config, self.parallel, steps=self.plan.steps, done=steps_done)
        try:
            for task in range(len(self.tasks)):
                if task >= done:
                    self.train_task(task, found if task == done else None)
                # The untrained network is evaluated after the first task, so that training starts at once.
                for row in (-1, 0) if task == 0 else (task,):
                    if lacking := self.results.lacking(row, readers):
                        self.evaluate(row, lacking)
        finally:
            self.writer.close()
            self.log.close()

    def train_task(self, task: int, checkpoint: tuple[Path, dict[str, Any]] | None) -> None:
        """Train one task from its beginning or from a checkpoint, and write its end state."""
        plan, chapter = self.plan.tasks[task], self.chapters.of(task)
        names, weights = chapter.record.class_names, term_weights(chapter.config, self.tasks, task)
        sizes = len(names), task, plan.images, plan.lr
        state = TaskState(chapter.config, *sizes, weights, self.path, self.parallel, names)
        position: dict[str, Any] = {"step": plan.first_step, "train_seconds": 0.0, "measures": {}}
        if checkpoint:
            path, position = checkpoint
            state.restore(path)
        self.parallel.set_scaler(position.get("scaler"))
        stepper = Stepper(chapter.present, self.plan, state)
        clock = Clock(position["train_seconds"], sum(map(self.directory.train_seconds, range(task))))
        self.means = TaskMeans(position.get("measures"))
        for step in range(position["step"] - plan.first_step, plan.steps):
            number, last = plan.first_step + step + 1, step + 1 == plan.steps
            logged = last or number % self.config.log.every_steps == 0
            if logged:
                stepper.prepare_measures()
            terms = stepper.step(step)
            self.callbacks.step(number, terms)
            if self._first:
                self._first = False
                synchronize(self.parallel.device)
                self.log.say(FIRST_STEP.format(time.time() - kaizen.STARTED))
            self.directory.position = (task, number)
            clock.count(plan.batch)
            self.log.progress.advance(task, len(self.tasks), step // plan.steps_per_epoch, plan.epochs)
            self.directory.follow(self.log.progress.seconds_left())
            if logged:
                self._log(task, step, terms, stepper, clock)
            if last:
                break
            if number % STOP_STEPS == 0 and self._stop_asked():
                self._save(state, terms, clock)
                self._wait_for_save()
                self._stop_if_asked()
            elif (every := self.config.run.checkpoint_every) and number % every == 0:
                self._save(state, terms, clock)
        self._wait_for_save()
        self.parallel.on_main(self.directory.check_lock)
        self.log.sync()
        stepper.close()
        files, path = stepper.task_end().files(), task_directory(self.path, task)
        state.save_task_end(path, files, stepper.image, lambda: self._position(clock))
        self.parallel.accelerator.free_memory()

    def evaluate(self, task: int, readers: Sequence[str]) -> None:
        """Write these readers' accuracies after a task (-1: untrained network), from its snapshot, to results.json."""
        began = time.perf_counter()
        with self.log.progress.evaluating(task, len(self.tasks)):
            network = self.evaluator.network(self.path, task)
            row = self.evaluator.row(network, task, readers, self._stop_if_asked, self.stop.check, run=self.path)
        self.results.add_row(task, row)
        spent = time.perf_counter() - began
        if task >= 0:
            plan, trained = self.plan.tasks[task], self.directory.train_seconds(task)
            self.results.add_seconds(task, images=plan.batch * plan.steps, trained=trained, evaluated=spent)
            told = f"task {task} ({self.tasks[task].name}): mean accuracy in % on the tasks seen: {row.means(task + 1)}"
            self.log.say("\n".join([told, *self.evaluator.notes(task, row)]))
            self.callbacks.task_end(task, row.accuracies)
        costs = {"world": self.parallel.world, "peak_memory": self.parallel.peak_memory()}
        self.parallel.on_main(lambda: self.results.write(**costs))

    def _log(self, task: int, step: int, terms: dict[str, Tensor], stepper: Stepper, clock: Clock) -> None:
        plan = self.plan.tasks[task]
        losses = finite_losses(self.parallel, terms, stepper.state.weights, self.directory.position)
        rate = clock.lap()
        record = {
            "step": plan.first_step + step + 1,
            "task": task,
            "epoch": step // plan.steps_per_epoch,
            "seconds": clock.seconds(),
            "images_per_second": rate,
            "lr": self.plan.rate(task, step, plan.lr),
            **losses,
            **(measures := stepper.measures()),
        }
        self.means.add(measures)
        self.log.line(record)
        self.log.progress.show(losses["loss/total"], rate)

    def _stop_asked(self) -> bool:
        """Whether any process was asked to stop; every process gets the same answer."""
        return self.parallel.any(self.stop.asked() is not None)

    def _stop_if_asked(self) -> None:
        self.directory.follow(self.log.progress.seconds_left())
        if self._stop_asked():
            # A signal may reach one process before the others.
            asked = [reason for reason in self.parallel.every(self.stop.asked()) if reason]
            raise Stopped(next((reason for reason in asked if reason.startswith("SIG")), asked[0]))

    def _position(self, clock: Clock) -> dict[str, Any]:
        """The position of the run, for state.json."""
        task, step = self.directory.position
        of = self.config.hash(extensions=self.chapters.of(task).number)
        setting = {"config_hash": of, "versions": self.versions, **self.parallel.setting()}
        where = {"task": task, "step": step, "train_seconds": clock.task_seconds(), "measures": self.means.sums}
        return where | setting | {"scaler": self.parallel.scaler_state()}

    def _save(self, state: TaskState, terms: dict[str, Tensor], clock: Clock) -> None:
        """Start to write a checkpoint of this step; `_wait_for_save` finishes it."""
        finite_losses(self.parallel, terms, state.weights, self.directory.position)
        self._wait_for_save()
        path, position = checkpoint_directory(self.path, *self.directory.position), self._position(clock)
        write = state.checkpoint(path, position)

        def work() -> None:
            self.directory.check_lock()
            self.log.sync()
            write()
            prune(self.path / "checkpoints", self.config.run.keep_checkpoints, position["task"])

        self.parallel.on_main(lambda: self.writer.submit(work))

    def _wait_for_save(self) -> None:
        """Wait until the checkpoint under way is on disk; its error is raised on every process."""
        self.parallel.on_main(self.writer.wait)
