"""`python -m kaizen eval RUN`: every task's snapshot of a run evaluated again, into its results.json."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from kaizen.cli.resolve import resolve
from kaizen.config.schema import Config, Reader, read_header
from kaizen.errors import ConfigError

HELP = f"""usage: python -m kaizen eval RUN [--readers READER,...]

Evaluate the untrained network and every task's snapshot of the run directory RUN again, rewrite RUN/results.json and
print the table. Nothing else in RUN is touched.

  --readers  what reads the features: {", ".join(get_args(Reader))} [eval.readers of RUN/config.yaml]
             Readers that are not named keep the rows that results.json has of them.

A run that is still going on rewrites results.json after each task from what it has measured itself: what this command
adds for readers that the run does not have is then gone, so evaluate those when the run has ended."""


def main(tokens: Sequence[str]) -> int:
    """Evaluate a run again; results.json is read, changed and replaced at the end, in one moment.

    A training process that replaces it later does so without our rows (see HELP); if ours is the later, the row of a
    task that ended meanwhile may be missing until the run goes on or is evaluated again. The file is whole at any time.

    Raises:
        ConfigError: RUN is no run, a reader is unknown, or a snapshot is damaged.
    """
    if {"-h", "--help"} & set(tokens):
        print(HELP)
        return 0
    path, readers = _parsed(tokens)
    _evaluate(path, *_configuration(path, readers))
    return 0


def _evaluate(path: Path, described: dict[str, str | None], config: Config) -> None:
    # torch loads only for a run and readers that hold
    from kaizen.data.load import load_stream
    from kaizen.evaluation.evaluator import Evaluator
    from kaizen.evaluation.results import Results
    from kaizen.evaluation.table import print_results
    from kaizen.parallel import Parallel
    from kaizen.run.directory import RunDirectory
    from kaizen.training.plan import make_plan

    parallel, readers = Parallel(), config.eval.readers
    directory = RunDirectory(path, config, parallel)
    done = directory.tasks_done()
    stream = parallel.main_first(lambda: load_stream(config))

    def read_results() -> Results:
        return Results(path / "results.json", described, config.stream.kind, stream.tasks)

    read_results()  # a file that cannot be read ends the command here and not after the work
    evaluator, rows, seconds = Evaluator(config, stream, parallel), [], []
    for task in range(-1, done):
        began = time.perf_counter()
        rows.append(evaluator.row(evaluator.network(path, task), task, readers))
        seconds.append(time.perf_counter() - began)
    results, world = read_results(), directory.world_size(done - 1) if done else parallel.world
    plan = make_plan(config, stream.train_sizes, world)
    results.forget(readers)
    for task, (row, spent) in enumerate(zip(rows, seconds, strict=True), start=-1):
        results.add_row(task, row)
        if task >= 0:
            part, trained = plan.tasks[task], directory.train_seconds(task)
            results.add_seconds(task, images=part.batch * part.steps, trained=trained, evaluated=spent)
    parallel.on_main(lambda: results.write(world=world, peak_memory=parallel.peak_memory()))
    parallel.on_main(lambda: print_results(results.content))
    parallel.close()


def _parsed(tokens: Sequence[str]) -> tuple[Path, tuple[str, ...] | None]:
    """RUN and the readers named, None for those of its configuration."""
    paths, readers, rest = [], None, list(tokens)
    while rest:
        token = rest.pop(0)
        option, given, value = token.partition("=")
        if option == "--readers":
            if not given and not rest:
                raise ConfigError("--readers", f"needs a value; allowed: {', '.join(get_args(Reader))}")
            readers = tuple((value if given else rest.pop(0)).split(","))
        elif token.startswith("-"):
            raise ConfigError(token, "is no option; allowed: --readers (see --help)")
        else:
            paths.append(token)
    if len(paths) != 1:
        raise ConfigError("RUN", f"is {paths}; allowed: one run directory")
    for reader in readers or ():
        if reader not in get_args(Reader) or (readers or ()).count(reader) > 1:
            allowed = f"{', '.join(get_args(Reader))}, each once, separated by commas"
            raise ConfigError("--readers", f"is {','.join(readers or ())!r}; allowed: {allowed}")
    return Path(paths[0]).expanduser(), readers


def _configuration(path: Path, readers: tuple[str, ...] | None) -> tuple[dict[str, str | None], Config]:
    """What results.json tells of a run's origin, and its configuration, with these readers."""
    file = path / "config.yaml"
    if not file.is_file():
        raise ConfigError("RUN", f"is '{path}', which holds no run (no config.yaml); allowed: a run directory")
    name, config = resolve(str(file), {})
    recipe, preset = read_header(file.read_text(encoding="utf-8"))
    evaluation = config.eval if readers is None else config.eval.model_copy(update={"readers": readers})
    # Whatever the run was started with, it is there now.
    changed = {"run": config.run.model_copy(update={"resume": "must"}), "eval": evaluation}
    described = {"recipe": recipe or name, "preset": preset, "config_hash": config.hash()}
    return described, config.model_copy(update=changed)
