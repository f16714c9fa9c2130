"""`python -m kaizen bench [RECIPE]`: the cost of a training step and of its parts, of tasks and of the start."""

import argparse
import importlib.util
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.commands.parser import Parser, at_least, launcher
from kaizen.commands.sweep import TRAIN
from kaizen.config.schema import Config
from kaizen.errors import ConfigError
from kaizen.run.stop import LAUNCHED

if TYPE_CHECKING:
    from kaizen.parallel import Parallel

AGAINST = ("pil", "kornia")
USAGE = "python -m kaizen bench [RECIPE] [--preset NAME] [--section.key VALUE ...] [OPTION ...]"
ABOUT = """Measure the training step of a recipe (default: digits) as the trainer takes it in task 1, with teacher and
replay memory, in a temporary directory: images/s, seconds of each part, FLOPs and their share of the device's peak,
peak memory, bytes sent. For simclr, mocov2plus, byol and vicreg, also the ratio to the step of a plain PyTorch loop
with the same networks. Numbers are medians, with 5 % and 95 % quantiles in brackets."""
CLOSING = """The recipe's data are used if they are on this machine, otherwise random images with their size and
classes. Keys are those of training (python train.py --help). Under a launcher only the main process prints.
Shares of parts come from a pass that waits for the device after every part; the step itself is timed without waiting.

  python -m kaizen bench digits --tasks 10
  python -m kaizen bench cifar100-mocov2plus --synthetic --profile
  python -m kaizen bench cifar100-mocov2plus --synthetic --whole 2 --eval.readers '[classifier]'
  python -m kaizen bench imagenet100-simclr --data
  python -m kaizen bench cifar100-simclr --start 'accelerate launch -q --num_processes 4'
  python -m kaizen bench cifar100-mocov2plus --encoder.width 16 --optim.batch 64 --synthetic --against pil
  accelerate launch -q --num_processes 4 -m kaizen bench cifar100-simclr --json bench.json

Exit codes: 0 done, 2 a key, an option or the data are wrong, 3 training failed."""


def main(tokens: Sequence[str]) -> int:
    """Measure and print.

    Raises:
        ConfigError: a key, an option or the data are wrong.
        TrainingFailed: with --tasks a loss is not finite; with --start a launch did not reach its first step.
    """
    parser = _parser()
    # As in training. torch reads it when it is loaded: waiting threads spin for a shorter time.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    given, rest = parser.parse_known_args(tokens)
    rest += ["--run.graph", given.graph] if given.graph else []
    arguments = parse_arguments(rest)
    if given.tasks:
        even = {"stream.tasks": str(given.tasks), "stream.classes": "null", "stream.sizes": "null"}
        arguments.overrides.update(even)
    recipe, config = resolve(*arguments)
    _check_options(given)
    # Like Ctrl-C, also when a terminal closes: the bench then deletes its files, and ends what it has launched.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    if given.start is not None:
        found = _start(recipe, config, rest, given)
        from kaizen.bench.table import start_lines

        _tell(found, start_lines(found), given.json)
        return 0
    # No speed depends on the values of weights.
    config = config.model_copy(update={"encoder": config.encoder.model_copy(update={"weights": None})})
    if given.tasks:
        from kaizen.bench.flat import check_tasks

        check_tasks(config, given.tasks)
    from kaizen.parallel import Parallel

    parallel = Parallel(deterministic=config.run.deterministic)
    found, text = _measured(recipe, config, given, parallel)
    # A training run has already left the process group, so the processes can no longer communicate.
    if parallel.is_main:
        _tell(found, text(found), given.json)
    if not given.tasks and not given.whole:
        parallel.close()
    return 0


Lines = Callable[[dict[str, Any]], Iterable[str]]


def _measured(recipe: str, config: Config, given: argparse.Namespace, parallel: "Parallel") -> tuple[Any, Lines]:
    """The measurement that was asked for, and the function that formats its numbers as lines."""
    from kaizen.bench.table import flat_lines, lines

    if given.tasks:
        return _flat(recipe, config, given.repetitions, given.synthetic, parallel), flat_lines
    if given.whole:
        from kaizen.bench.whole import measure_whole, whole_lines

        # What a run prints is progress here.
        with redirect_stdout(sys.stderr):
            return measure_whole(recipe, config, given.whole, given.synthetic, parallel), whole_lines

    def say(text: str) -> None:
        if parallel.is_main:
            print(text, file=sys.stderr, flush=True)

    if given.data:
        from kaizen.bench.feeding import data_lines, measure_data

        return measure_data(recipe, config, given.repetitions, given.synthetic, parallel, say), data_lines
    from kaizen.bench.measure import Options, measure

    options = Options(given.repetitions, given.profile, given.synthetic, tuple(given.against), given.checkpoints)
    return measure(recipe, config, options, parallel, say), lines


def _check_options(given: argparse.Namespace) -> None:
    """Refuse options that cannot be combined or used, or not under a launcher."""
    alone = [f"--{name}" for name in ("tasks", "start", "whole", "data") if getattr(given, name) not in (None, False)]
    others = [f"--{name}" for name in ("profile", "against", "checkpoints") if getattr(given, name)]
    if alone and (more := [*alone, *others][1:]):
        raise ConfigError(more[0], f"is given with {alone[0]}, which measures nothing else; allowed: one of the two")
    if "kornia" in given.against and importlib.util.find_spec("kornia") is None:
        raise ConfigError("--against", "is kornia, which is not installed; allowed: pil, or pip install kornia")
    if given.json not in (None, "-") and not Path(given.json).expanduser().parent.is_dir():
        raise ConfigError("--json", f"is {given.json!r}, whose directory does not exist; allowed: a file, or -")
    if given.start is not None and LAUNCHED in os.environ:
        raise ConfigError("--start", "starts processes itself; allowed: python -m kaizen bench without a launcher")


def _parser() -> Parser:
    parser = Parser(USAGE, ABOUT, CLOSING)
    parser.add_argument(
        "--repetitions", metavar="N", type=at_least(1), default=20, help="repetitions of each measurement [20]"
    )
    parser.add_argument("--synthetic", action="store_true", help="use random images in any case")
    parser.add_argument(
        "--graph",
        choices=("auto", "off"),
        help="auto: recorded steps on a GPU, compared with ordinary ones; off: ordinary ones [run.graph]",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="also show the idle time of the device, the number of kernels per step and those with most time",
    )
    parser.add_argument(
        "--against",
        metavar="|".join(AGAINST),
        choices=AGAINST,
        action="append",
        default=[],
        help="also time this pipeline of two views against ours, on one thread; with data.store files, pil is a "
        "DataLoader with PIL that reads the same files with as many workers; may be given twice",
    )
    parser.add_argument(
        "--checkpoints", action="store_true", help="also compare steps with and without a checkpoint every 50 steps"
    )
    parser.add_argument(
        "--tasks",
        metavar="N",
        type=at_least(1),
        help="measure only this: train N small tasks; ratio of seconds per step of the last to task 1, peak memory "
        "and share of evaluation in each",
    )
    parser.add_argument(
        "--whole",
        metavar="EPOCHS",
        type=at_least(2),
        help="measure only this: train all tasks of the recipe for EPOCHS epochs each (2 or more); hours that it "
        "takes with its full number of epochs",
    )
    parser.add_argument(
        "--data",
        action="store_true",
        help="measure only this: images/s of the data alone, by number of workers, and of steps whose data are ready; "
        "and which of the two limits training",
    )
    parser.add_argument(
        "--start",
        metavar="COMMAND",
        type=launcher,
        help="measure only this: start training with this launcher, a quarter of --repetitions times; seconds from "
        "its call to the end of the first step, with cached data; and those of --help and of a wrong key without "
        "it; an empty launcher starts a plain process",
    )
    parser.add_argument("--json", metavar="FILE", help="write all numbers to FILE; -: print them instead of the table")
    return parser


def _flat(recipe: str, config: Config, turns: int, synthetic: bool, parallel: "Parallel") -> dict[str, Any]:
    """Train small tasks and compare the last with task 1."""
    from kaizen.bench.flat import compare_tasks, small_tasks, summary
    from kaizen.bench.measure import workplace
    from kaizen.bench.memory import peak_memory, reset_peak
    from kaizen.data.load import Stream
    from kaizen.run.stop import StopRequest
    from kaizen.training.trainer import Trainer

    small, stream, data = small_tasks(config, turns, synthetic, parallel)
    peaks: list[int] = []
    found: dict[str, Any] = {}

    class Watched(Trainer):
        def load(self) -> Stream:
            return stream

        def train_task(self, task: int, checkpoint: tuple[Path, dict[str, Any]] | None) -> None:
            reset_peak(self.parallel)
            super().train_task(task, checkpoint)
            peaks.append(peak_memory(self.parallel))

        def evaluate(self, task: int, readers: Sequence[str]) -> None:
            super().evaluate(task, readers)
            if task == len(self.tasks) - 1:
                again = compare_tasks(self.config, stream, self.plan, self.path, self.parallel, turns)
                found.update(summary(self.path, self.plan, config.optim, peaks, again))

    # What a run prints is progress here.
    with workplace(parallel) as place, redirect_stdout(sys.stderr):
        Watched(recipe, small, place / "run", StopRequest()).run()
    return {"schema": 1, "recipe": recipe, "config_hash": small.hash(), "data": data, **found}


def _start(recipe: str, config: Config, rest: Sequence[str], given: argparse.Namespace) -> dict[str, Any]:
    """Launch training and wait for its first step."""
    from kaizen.bench.start import measure_start

    say = partial(print, file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="kaizen-bench-", ignore_cleanup_errors=True) as place:
        train = ["-m", TRAIN, *rest]
        found = measure_start(given.start, train, config, given.synthetic, given.repetitions, Path(place), say)
    return {"schema": 1, "recipe": recipe, "config_hash": config.hash(), **found}


def _tell(found: dict[str, Any], text: Iterable[str], file: str | None) -> None:
    content = json.dumps(found, indent=1)
    if file == "-":
        print(content)
        return
    if file is not None:
        try:
            Path(file).expanduser().write_text(content + "\n", encoding="utf-8")
        except OSError as error:
            raise ConfigError("--json", f"{file} cannot be written ({error.strerror})") from None
    print("\n".join(text), flush=True)
