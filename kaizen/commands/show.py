"""`python -m kaizen show RECIPE`: the resolved configuration as YAML, the numbers derived from it, and the tasks."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kaizen.cli.resolve import left_out, parse_arguments, resolve
from kaizen.config.schema import Config, header
from kaizen.config.yaml import dump_yaml
from kaizen.data.known import KNOWN_SOURCES, KnownSource
from kaizen.errors import ConfigError
from kaizen.plugins import code_of
from kaizen.training.defaults import Facts, suit
from kaizen.training.plan import describe, make_plan

if TYPE_CHECKING:
    from kaizen.data.load import Stream
    from kaizen.data.stream import Task

WIDTH, MOST_TASKS = 98, 50
"""Columns of a line on a task, without the mark of a comment, and the number of such lines."""
ABSENT = ("data.source", "data.cache_dir")
"""Keys of the errors that a source of the hub ends with where it cannot be opened on this machine."""


def main(tokens: Sequence[str]) -> int:
    """Print the configuration that train.py would use; nothing is downloaded, and images of the hub are not decoded."""
    if {"-h", "--help"} & set(tokens):
        from kaizen.cli.help import help_text

        usage = "python -m kaizen show [RECIPE] [--preset NAME] [--trust-code] [--section.key VALUE ...]"
        print(help_text(usage, "Print the resolved configuration, and the tasks where the data are on this machine."))
        return 0
    arguments = parse_arguments(tokens)
    recipe, config = resolve(*arguments)
    said, missing = left_out(*arguments), None
    try:
        facts, found, tasks = _facts(config)
        config, chosen = suit(config, facts)
        said += [*found, *describe(config, make_plan(config, facts.images, 1), 1), *chosen, *tasks]
    except ConfigError as error:
        missing = error
    print(f"{header(recipe, arguments.preset)}# config hash: {config.hash()}")
    tree = config.tree()
    print(dump_yaml(tree | ({"code": code} if (code := code_of(tree)) else {})), end="")
    for line in said:
        print(f"# {line}")
    if missing:
        # The configuration is valid all the same, and the data may be on a different machine.
        if missing.key not in ABSENT or not _is_on_hub(config):
            raise missing
        reason = f"{config.data.source} is not on this machine" if missing.key == "data.source" else missing
        print(f"# numbers derived from the data are missing: {reason}")
    return 0


def _is_on_hub(config: Config) -> bool:
    known = KNOWN_SOURCES.get(config.data.source)
    return known.hub is not None if known else config.data.source.startswith("hub:")


def _facts(config: Config) -> tuple[Facts, list[str], list[str]]:
    """Sizes from which numbers are derived, lines on what was found in the data, and lines on the tasks.

    Known sources with classes of equal size need no data for the numbers.
    """
    from kaizen.data.decoding import evaluation_side

    known, absent = KNOWN_SOURCES.get(config.data.source), None
    try:
        stream = _load(config)
        return Facts.of(stream), stream.describe(), list(task_lines(stream))
    except ConfigError as error:
        if error.key not in ABSENT or not _is_on_hub(config):
            raise
        absent = error
    if known is None or not (sizes := _known_sizes(known, config)):
        raise absent
    parts = config.stream.tasks if config.stream.kind == "data" else 1
    side = config.data.image_size or known.image_size
    resize = None
    if known.stored(config.data.store) == "files":
        resize = config.eval.resize if isinstance(config.eval.resize, int) else evaluation_side(side)
    facts = Facts(tuple(sizes), known.train_images // known.classes // parts, side, resize)
    told = f"{'classes':19} {config.data.source} is not on this machine, so the classes of its tasks are not shown"
    return facts, [], [told]


def _load(config: Config) -> "Stream":
    """The tasks of a source that is built in, local, or on this machine as a copy of the hub."""
    from kaizen.data.load import load_stream

    if not _is_on_hub(config):
        return load_stream(config)
    from kaizen.data.origins import offline

    with offline():
        return load_stream(config, decode=False)


def task_lines(stream: "Stream") -> Iterator[str]:
    """A line on each task: its name where that is not its classes, its images, and as many of its classes as fit."""
    for number, task in enumerate(stream.tasks[:MOST_TASKS]):
        yield _task_line(number, task, stream.source.class_names)
    if len(stream.tasks) > MOST_TASKS:
        yield f"{'':19} and {len(stream.tasks) - MOST_TASKS} more tasks"


def _task_line(number: int, task: "Task", class_names: Sequence[str]) -> str:
    from kaizen.data.stream import task_name

    names = [class_names[label] for label in task.classes]
    own = "" if task.name == task_name(names) else f"{task.name[:30]}: "
    classes = f"{len(names)} class{'es' * (len(names) != 1)}"
    line = f"{f'task {number}':19} {own}{len(task.train)} to train, {len(task.test)} to test, {classes}"
    for shown in range(len(names), 0, -1):
        more = f" and {len(names) - shown} more" if shown < len(names) else ""
        if len(text := f"{line}: {', '.join(names[:shown])}{more}") <= WIDTH:
            return text
    return line


def _known_sizes(known: KnownSource, config: Config) -> list[int]:
    """Training images of each task of a known source; empty if they depend on the data."""
    from kaizen.data.stream import class_stream, data_stream

    stream, images = config.stream, known.train_images
    each, rest = divmod(images, known.classes)
    if config.data.train_split != "train" or config.data.test_fraction is not None:
        return []
    if stream.classes is not None:
        sizes = [len(task) * each for task in stream.classes] if not rest else []
        return sizes if stream.kind == "class" else [sum(sizes)] * bool(sizes)
    if stream.kind in ("joint", "data") and stream.tasks <= images:
        return [len(part) for part in data_stream(images, stream.tasks, stream.seed, 0, stream.sizes)]
    if stream.kind == "class" and not rest:
        return [len(cut) * each for cut in class_stream(known.classes, stream.tasks, stream.seed, stream.sizes)]
    return []
