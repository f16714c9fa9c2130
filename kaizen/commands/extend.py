"""`python -m kaizen extend RUN --data.source SOURCE`: adds tasks to the end of a run, which training then continues."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from kaizen.cli.explain import explained
from kaizen.cli.lists import make_lists
from kaizen.cli.resolve import derive_tasks, override, parse_arguments, resolve_run, shorten_warmup
from kaizen.cli.shipped import preset_of
from kaizen.config.extension import Extension
from kaizen.config.schema import Config, header
from kaizen.config.yaml import dump_yaml, parse_yaml
from kaizen.errors import ConfigError, Stopped

if TYPE_CHECKING:
    from kaizen.data.chapters import Chapter, Chapters
    from kaizen.data.history import Record

USAGE = "python -m kaizen extend RUN --data.source SOURCE [--trust-code] [--section.key VALUE ...]"
SECTIONS = tuple(Extension.model_fields)
FIXED = ("data.image_size", "data.normalize", "data.store")
"""Keys that stay as in the run, as its networks were trained with them."""
HELP = f"""usage: {USAGE}

Add what SOURCE holds to the end of the run directory RUN, as one task or several; the run may be finished or not. The
usual training command, or train.py RUN/config.yaml, then trains the new tasks alone, from the state at the end of the
last one. Images of earlier sources need not exist any more.

Class names decide: a known name keeps its output of the classifier, a new name gets a new one. Images take the run's
size and normalisation. Without keys of the stream everything is one task.

Keys of these sections may be given: {", ".join(SECTIONS)}. Columns, splits, stream and labels begin with their
defaults, optim and replay with the values of RUN. {", ".join(FIXED)} cannot change, and neither
can other sections.

  python -m kaizen extend runs/shop --data.source imagefolder:new
  python -m kaizen extend runs/shop --data.source parquet:new --stream.tasks 2 --optim.epochs 50 --labels.fraction 0.1
"""


def main(tokens: Sequence[str]) -> int:
    """Extend a run.

    Raises:
        ConfigError: RUN is no run or is training now, a key cannot change, or the data do not fit.
    """
    if not tokens or {"-h", "--help"} & set(tokens):
        print(HELP, end="")
        return 0 if tokens else 2
    first, *rest = tokens
    if first.startswith("-"):
        raise ConfigError("RUN", f"is missing: {USAGE}")
    given = parse_arguments(rest)
    if given.recipe != "digits" or given.preset is not None:
        found = given.preset or given.recipe
        raise ConfigError("arguments", f"contain {found!r}; allowed after RUN: --section.key VALUE")
    _extend(Path(first).expanduser(), given.overrides, given.trust_code)
    return 0


def _extend(run: Path, overrides: dict[str, str], trust_code: bool) -> None:
    file = run / "config.yaml"
    if not file.is_file():
        raise ConfigError("RUN", f"is '{run}', which contains no run (no config.yaml); allowed: a run directory")
    for key in overrides:
        if key.split(".")[0] not in SECTIONS or key in FIXED:
            allowed = f"keys of {', '.join(SECTIONS)}, without {', '.join(FIXED)}"
            raise ConfigError(key, f"cannot change in an extension; allowed: {allowed}")
    if "data.source" not in overrides:
        raise ConfigError("data.source", f"is missing; allowed: the source of the new images, as in {USAGE}")
    # What loads torch waits until the keys are checked.
    from kaizen.run.checkpoint import write_text
    from kaizen.run.lock import RunLock

    lock = RunLock(run)
    try:
        recipe, own = resolve_run(run, {}, trust_code=trust_code)
        extension = _extension(own, overrides)
        chapters, new = _prepare(own, extension, run)
        extension = extension.model_copy(update={"optim": new.config.optim})
        extended = own.model_copy(update={"extensions": (*own.extensions, extension)})
        chapters = type(chapters)([*chapters.parts, new])
        lock.check()
        # The record first: a kill in between leaves one too many, which the next extension replaces.
        chapters.write(run)
        code = parse_yaml(file.read_text(encoding="utf-8")).get("code")
        tree = extended.tree() | ({"code": code} if code else {})
        write_text(file, header(recipe, preset_of(str(file))) + dump_yaml(tree))
        _tell_status(run, new)
    finally:
        lock.release()
    _say(chapters, new, run)


def _extension(own: Config, overrides: dict[str, str]) -> Extension:
    """The sections of an extension: defaults or the run's values, then the overrides.

    Raises:
        ConfigError: a key is unknown, or a value is not allowed.
    """
    kept = {"cache_dir", "background", "broken", "store", "workers"}
    tree: dict[str, Any] = {
        "data": own.data.model_dump(mode="json", include=kept),
        "stream": {},
        "labels": {},
        "replay": own.replay.model_dump(mode="json"),
        "optim": own.optim.model_dump(mode="json"),
    }
    override(tree, overrides)
    stream = tree["stream"]
    if not stream.get("kind"):
        # Without keys of the stream there is one task; with some, the run's kind of division.
        stream["kind"] = "joint" if not stream or own.stream.kind == "joint" else own.stream.kind
    shorten_warmup(tree, overrides)
    make_lists(tree, Extension)
    derive_tasks(stream)
    try:
        return Extension.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise explained(error, tree, Extension) from None


def _prepare(own: Config, extension: Extension, run: Path) -> tuple["Chapters", "Chapter"]:
    """The chapters of the run, and the new one.

    Raises:
        ConfigError: the new data do not fit the run.
    """
    from kaizen.data.chapters import Chapter, Chapters, added
    from kaizen.data.history import read_history
    from kaizen.run.places import task_directory
    from kaizen.training.defaults import Facts, suit
    from kaizen.training.plan import make_plan
    from kaizen.training.remember import check_budget

    records = read_history(run) or [_recorded(own)]
    parts: list[Chapter] = []
    for number, record in enumerate(records[: len(own.extensions) + 1]):
        first = sum(len(part.record.tasks) for part in parts)
        parts.append(Chapter(number, own.chapter(number), first, record, None))
    if len(parts) <= len(own.extensions):
        raise ConfigError(str(run / "history.json"), "lacks an extension that config.yaml has; train the run first")
    untrained = not task_directory(run, parts[-1].first).exists()
    if own.extensions and own.extensions[-1].data.source == extension.data.source and untrained:
        problem = f"is {extension.data.source}, by which the run is already extended"
        raise ConfigError("data.source", f"{problem}; allowed: train the new tasks first, or another source")
    config = own.model_copy(update=dict(extension))
    stream, record = added(config, parts)
    if len(record.class_names) > len(parts[-1].record.class_names) and own.classifier.distill == "stored_logits":
        new = ", ".join(record.class_names[len(parts[-1].record.class_names) :][:5])
        problem = f"has the new classes {new}, and stored logits (classifier.distill) have no place for them"
        raise ConfigError("data.source", f"{problem}; allowed: classes that the run knows")
    known = set(range(len(parts[-1].record.class_names)))
    for number, task in enumerate(record.tasks, start=stream.first):
        if own.classifier.distill_weight == "class_ratio" and known.issuperset(task.classes):
            problem = f"brings no new class in task {number}, and the run's classifier.distill_weight is 'class_ratio'"
            raise ConfigError("data.source", f"{problem}; allowed: tasks with new classes")
        known.update(task.classes)
    facts = Facts.of(stream)
    config = suit(config, facts)[0]
    make_plan(config, facts.images, 1)
    check_budget(config, stream)
    return Chapters(parts), Chapter(len(parts), config, stream.first, record, stream)


def _recorded(own: Config) -> "Record":
    """The record of a run that has no history.json, from its data."""
    from kaizen.data.history import record_of
    from kaizen.data.load import load_stream

    stream = load_stream(own)
    return record_of(stream, own.data.source, stream.source.digest())


def _tell_status(run: Path, new: "Chapter") -> None:
    """status.json: the run waits for training again."""
    from kaizen.run.status import read_position, timestamp, write_status

    task, step = read_position(run)
    tasks = f"{len(new.record.tasks)} task{'s' if len(new.record.tasks) > 1 else ''}"
    reason = f"extended by {new.config.data.source} ({tasks}), which the training command trains"
    content = {"state": "stopped", "exit_code": Stopped.exit_code, "task": task, "step": step, "updated": timestamp()}
    write_status(run, content | {"seconds_left": None, "reason": reason})


def _say(chapters: "Chapters", new: "Chapter", run: Path) -> None:
    before = chapters.parts[-2].record.class_names
    names = new.record.class_names[len(before) :]
    place, file = (shlex.quote(str(path)) for path in (run, run / "config.yaml"))
    assert new.stream is not None
    for line in new.stream.describe():
        print(line)
    print(f"new classes         {', '.join(names[:10]) or 'none'}{f', ... ({len(names)})' if len(names) > 10 else ''}")
    for number, task in enumerate(new.record.tasks, start=new.first):
        print(f"task {number:<14} {task.name}: {task.train_images} images to train, {task.test_images} to test")
    print(f"extended            {run}; train with: python train.py {file} --run.dir {place}")
