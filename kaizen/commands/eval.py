"""`python -m kaizen eval RUN`: evaluates every task's snapshot of a run again and rewrites its results.json."""

import argparse
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kaizen.cli.resolve import resolve_run
from kaizen.cli.shipped import preset_of
from kaizen.cli.trust import OPTION
from kaizen.commands.parser import Parser
from kaizen.config.data import DataConfig
from kaizen.config.schema import READERS, Config
from kaizen.errors import ConfigError
from kaizen.evaluation.schema import DAMAGED, provenance, read_results
from kaizen.plugins import HOW

if TYPE_CHECKING:
    from kaizen.data.load import Stream

USAGE = "python -m kaizen eval RUN [--readers READER,...] [--data.source SOURCE] [--other-data NAME] [--trust-code]"
ABOUT = """Evaluate the untrained network and every task's snapshot of the run directory RUN again, rewrite
RUN/results.json and print the table. Nothing else in RUN is touched. The images, labels and class names must be those
that the run was trained on, but may be at a different place."""
CLOSING = """A run that is still training rewrites results.json after each task with its own measurements, so evaluate
further readers after it has ended.

  python -m kaizen eval runs/digits-seed0 --readers knn,linear_probe_all
  python -m kaizen eval RUN --data.source parquet:/new/place          # the same data at a different place
  python -m kaizen eval RUN --data.source parquet:/corrupted --other-data corrupted"""
PLACES = [f"data.{name}" for name in DataConfig.model_fields if name != "normalize"]
"""Keys of where the data are and how they are read; the normalisation is always the run's."""


def main(tokens: Sequence[str]) -> int:
    """Evaluate a run again; results.json is read, changed and replaced atomically at the end.

    A training process that replaces it later drops our rows (see CLOSING); if this command replaces it later, the row
    of a task that ended meanwhile may be missing until the run resumes or is evaluated again. The file is always whole.

    Raises:
        ConfigError: RUN is not a run, a reader is unknown, a snapshot is damaged, or the data are not those of the run.
    """
    parser = Parser(USAGE, ABOUT, CLOSING)
    known = ", ".join([*READERS.words, HOW])
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument(
        "--readers", type=_readers, metavar="R,...", help=f"{known} [the run's own]; rows of other readers are kept"
    )
    parser.add_argument(
        "--other-data", type=_name, metavar="NAME", help="evaluate on different data, into results-NAME.json"
    )
    parser.add_argument(OPTION, action="store_true", help="run code that RUN names: a method, an encoder and so on")
    for key in PLACES:
        parser.add_argument(f"--{key}", metavar=key.rpartition(".")[2].upper(), help="as for train.py [the run's own]")
    given = vars(parser.parse_args(tokens))
    places = {key: given[key] for key in PLACES if given[key] is not None}
    if given["readers"] is not None:
        places["eval.readers"] = ",".join(given["readers"])
    _evaluate(Path(given["run"]).expanduser(), places, given["other_data"], given["trust_code"])
    return 0


def _evaluate(path: Path, asked: dict[str, str], other: str | None, trust_code: bool) -> None:
    described, own, config = _configurations(path, asked, trust_code)
    # torch is loaded only for a valid run and valid readers
    from kaizen.data.chapters import open_chapters
    from kaizen.evaluation.evaluator import Evaluator
    from kaizen.evaluation.results import Results
    from kaizen.evaluation.table import print_results, show_results
    from kaizen.parallel import Parallel
    from kaizen.run.directory import RunDirectory
    from kaizen.training.plan import plan_chapters

    parallel, readers = Parallel(), config.eval.readers
    directory = RunDirectory(path, own, parallel, reading=True)
    done = directory.tasks_done()
    if other is not None:
        # Other data stand for the run's own source, and not for those of its extensions.
        config = config.model_copy(update={"extensions": ()})
    chapters = parallel.main_first(lambda: open_chapters(config, path, lambda: _load(path, config, other)))
    done = min(done, len(chapters.tasks))
    if other is None and "data" not in provenance(path):
        parallel.announce(f"note: {path / 'environment.json'} names no data, so they were not compared")
    file = path / ("results.json" if other is None else f"results-{other}.json")

    def results_so_far() -> Results:
        return Results(file, described, config, chapters)

    for part in chapters.parts:
        if part.stream is None:
            parallel.announce(f"note: {part.config.data.source} is gone, so its tasks are not evaluated: {part.gone}")
    world = directory.world_size(done - 1) if done else parallel.world
    plan = plan_chapters(chapters, world) if other is None else None
    results_so_far()  # an unreadable file ends the command before the work, not after it
    evaluator, rows, seconds = Evaluator(config, chapters, parallel), [], []
    for task in range(-1, done):
        began = time.perf_counter()
        rows.append(evaluator.row(evaluator.network(path, task), task, readers, run=path))
        seconds.append(time.perf_counter() - began)
    results = results_so_far()
    rows = [results.filled(task, row) for task, row in enumerate(rows, start=-1)]
    results.forget(readers)
    for task, (row, spent) in enumerate(zip(rows, seconds, strict=True), start=-1):
        results.add_row(task, row)
        if task >= 0:
            images = plan.tasks[task].batch * plan.tasks[task].steps if plan else None
            results.add_seconds(task, images=images, trained=directory.train_seconds(task), evaluated=spent)
    for task, row in enumerate(rows, start=-1):
        for line in evaluator.notes(task, row):
            parallel.announce(line)
    parallel.on_main(lambda: results.write(world=world, peak_memory=parallel.peak_memory()))
    if other is None:
        parallel.on_main(lambda: show_results(results.content, path / "results.svg"))
    else:
        parallel.on_main(lambda: print_results(results.content))
    parallel.announce(f"results             {file}")
    parallel.close()


def _load(path: Path, config: Config, other: str | None) -> "Stream":
    """The run's own data, wherever they are, or different data with the same classes.

    Raises:
        ConfigError: they are missing, or are not what was asked for.
    """
    from kaizen.data.load import load_stream

    try:
        stream = load_stream(config)
    except ConfigError as error:
        if error.key != "data.source":
            raise
        hint = "; --data.source SOURCE names the place where the data are now"
        raise ConfigError(error.key, error.problem + hint) from None
    trained, source = provenance(path).get("data"), stream.source
    if other is None and trained not in (None, source.digest()):
        problem = f"{config.data.source} contains different images or labels from those that {path} was trained on"
        remedy = "--data.source SOURCE with the same, or --other-data NAME, which writes results-NAME.json"
        raise ConfigError("data.source", f"{problem}; allowed: {remedy}")
    return stream if other is None else _as_trained(path / "results.json", config, stream)


def _as_trained(file: Path, config: Config, stream: "Stream") -> "Stream":
    """Different data, normalised as the run normalised its own.

    Raises:
        ConfigError: they have other classes or tasks than the run, or the run's results cannot be read.
    """
    from torch import tensor

    from kaizen.data.stream import task_name

    try:
        held = read_results(file)
        names, tasks = held["class_names"], [task["name"] for task in held["stream"]["tasks"]]
        moments = tensor(held["data"]["mean"]), tensor(held["data"]["std"])
    except DAMAGED as error:
        raise ConfigError(
            str(file), f"cannot be read ({type(error).__name__}: {error}); evaluate the run first"
        ) from None
    # Those of the run's own source come first.
    if list(names)[: len(stream.source.class_names)] != list(stream.source.class_names):
        found, wanted = task_name(stream.source.class_names), task_name(names)
        problem = f"{config.data.source} has the classes {found}, the run {wanted}"
        raise ConfigError("data.source", f"{problem}; allowed: data with the classes of the run, in that order")
    if tasks[: len(stream.tasks)] != [task.name for task in stream.tasks]:
        problem = f"{config.data.source} has other tasks than the run"
        raise ConfigError("data.source", f"{problem}; allowed: data with the same domains")
    return replace(stream, moments=moments)


def _configurations(
    path: Path, asked: dict[str, str], trust_code: bool
) -> tuple[dict[str, str | None], Config, Config]:
    """Origin of a run as in results.json, its configuration, and the configuration for the evaluation."""
    readers = {key: text for key, text in asked.items() if key == "eval.readers"}
    name, own = resolve_run(path, readers, trust_code=trust_code)
    preset = preset_of(str(path / "config.yaml"))
    described = {"recipe": name, "preset": preset, "config_hash": own.hash()}
    # The run exists by now, whatever run.resume was at its start.
    own = own.model_copy(update={"run": own.run.model_copy(update={"resume": "must"})})
    data = resolve_run(path, asked, trust_code=trust_code)[1].data
    return described, own, own.model_copy(update={"data": data})


def _readers(text: str) -> tuple[str, ...]:
    """Readers from `a,b` or `[a,b]`."""
    found = tuple(name.strip() for name in text.strip("[]").split(","))
    try:
        checked = {READERS.check(name) for name in found}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}, each once, separated by commas, as knn,classifier") from None
    if len(checked) < len(found):
        raise argparse.ArgumentTypeError(f"is {text!r}; allowed: each reader once, as knn,classifier")
    return found


def _name(text: str) -> str:
    """A name that can be part of a file name."""
    if not re.fullmatch(r"\w[\w.-]*", text):
        raise argparse.ArgumentTypeError(f"is {text!r}; allowed: letters, digits, '_', '-' and '.', as corrupted")
    return text
