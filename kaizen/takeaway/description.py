"""What a model has besides tensors, read from a run directory or from the config.json of an exported folder."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

from pydantic import Field, ValidationError
from torch import Tensor

import kaizen
from kaizen.config.encoder import EncoderConfig
from kaizen.config.schema import read_header
from kaizen.config.types import Positive, Section
from kaizen.config.yaml import parse_yaml
from kaizen.data.history import read_history
from kaizen.errors import ConfigError, DamagedError
from kaizen.evaluation.schema import DAMAGED, read_results
from kaizen.model.statistics import FILE, read_checked
from kaizen.plugins import in_run, is_code, own_settings
from kaizen.run.checkpoint import read_state
from kaizen.run.places import TASK_END, task_directory
from kaizen.run.tensors import read_tensors

Reader = Literal["classifier", "statistics"]
READERS: tuple[Reader, ...] = get_args(Reader)
CONFIG, TENSORS = "config.json", "model.safetensors"
"""Files of an exported folder."""
Three = tuple[float, float, float]


class Description(Section):
    """A model without its tensors, as config.json has it.

    kaizen: version that wrote it. features: their number. image_size: side in pixels. resize: the shorter side in
    pixels before the centre is cropped, None: image_size. mean, std: per channel, of levels 0..1. taught: for each
    reader the positions in class_names of the classes that it was taught. task: number of the task whose end the model
    is from. run: where it comes from, and accuracies: what was measured; for people to read.
    """

    format: Literal[1] = 1
    kaizen: str
    encoder: EncoderConfig
    features: int
    image_size: int = Field(ge=1, le=1024)
    resize: int | None = Field(None, ge=1)
    mean: Three
    std: tuple[Positive, Positive, Positive]
    background: Literal["white", "black"] = "white"
    class_names: tuple[str, ...]
    taught: dict[Reader, tuple[int, ...]]
    task: int
    run: dict[str, Any] = Field(default_factory=dict)
    accuracies: dict[str, Any] = Field(default_factory=dict)


class Held(NamedTuple):
    """A description, and its tensors: encoder.*, classifier.* and, where they are kept, statistics.*, from `source`."""

    description: Description
    tensors: dict[str, Tensor]
    source: Path


def classifier_sizes(tensors: Mapping[str, Tensor], source: Path) -> list[int]:
    """Sizes of the layers of classifier.*, from features to outputs, as its own weights have them.

    Raises:
        ConfigError: there is no classifier.
    """
    found = {
        int(m[1]): t.shape for name, t in tensors.items() if (m := re.fullmatch(r"classifier\.(\d+)\.weight", name))
    }
    shapes = [found[number] for number in sorted(found)]
    if not shapes or any(len(shape) != 2 for shape in shapes):
        raise ConfigError(str(source), "contains no classifier; allowed: tensors that a run or `export` saved")
    return [shapes[0][1], *(shape[0] for shape in shapes)]


def read_export(folder: Path, task: int) -> Held:
    """What `export` wrote.

    Raises:
        ConfigError: a file is missing or damaged, or the folder is from the end of another task.
    """
    file = folder / CONFIG
    try:
        description = Description.model_validate_json(file.read_bytes())
    except OSError as error:
        raise ConfigError(str(file), f"cannot be read ({error.strerror})") from None
    except ValidationError as error:
        raise _invalid(file, error) from None
    if is_code(description.encoder.name):
        raise ConfigError(str(file), f"has the encoder {description.encoder.name}; allowed: one that needs no code")
    if task not in (-1, description.task):
        raise ConfigError("task", f"is {task}; allowed: {description.task}, the only task of {folder}, or -1")
    return Held(description, read_tensors(folder / TENSORS), folder / TENSORS)


def read_run(run: Path, task: int, trust_code: bool = False) -> Held:
    """The model at the end of a task of a run; -1: of its last complete one. Nothing is changed.

    Args:
        trust_code: whether the file of an encoder of the user's own may run; nothing else is ever executed.

    Raises:
        ConfigError: there is no such task, a file is missing or damaged, or code may not run.
    """
    tree, text = _settings(run / "config.yaml")
    results = _results(run)
    done = 0
    while task_directory(run, done).is_dir():
        done += 1
    if not done:
        raise ConfigError("RUN", f"is '{run}', which has finished no task yet; allowed: a run that has")
    if not -1 <= task < done:
        raise ConfigError("task", f"is {task}; allowed: 0 to {done - 1}, or -1 for the last")
    task, encoder = done - 1 if task < 0 else task, _encoder(tree, run, trust_code)
    folder = task_directory(run, task)
    try:
        read_state(folder, TASK_END)
    except DamagedError as error:
        raise ConfigError(error.key, error.problem) from None
    source = folder / "student.safetensors"
    parts = ("encoder.", "classifier.")
    tensors = {name: tensor for name, tensor in read_tensors(source).items() if name.startswith(parts)}
    dim, *_, outputs = classifier_sizes(tensors, source)
    statistics = folder / f"{FILE}.safetensors"
    if statistics.exists():
        layer = read_checked(statistics, dim)
        tensors |= {f"statistics.{name}": layer[name] for name in ("classes", "weight", "bias")}
    file = run / "results.json"
    try:
        description = Description(
            kaizen=kaizen.__version__,
            encoder=encoder,
            features=dim,
            image_size=_side(run, folder),
            resize=tree.get("eval", {}).get("resize") if tree["data"].get("store") == "files" else None,
            mean=tuple(results["data"]["mean"]),
            std=tuple(results["data"]["std"]),
            background=tree["data"].get("background", "white"),
            class_names=tuple(results["class_names"][:outputs]),
            taught=_taught(tree, results, task, tensors, outputs),
            task=task,
            run=_origin(tree, text, results, task),
            accuracies=_accuracies(results, task, done),
        )
        if len(description.class_names) != outputs:
            raise ValueError(f"it names {len(description.class_names)} classes; {source} has {outputs} outputs")
    except ValidationError as error:
        raise _invalid(run, error) from None
    except DAMAGED as error:
        problem = f"does not fit the run ({type(error).__name__}: {error}); `python -m kaizen eval {run}` renews it"
        raise ConfigError(str(file), problem) from None
    return Held(description, tensors, source)


def _side(run: Path, folder: Path) -> int:
    """Side of the images in pixels; runs of early versions have no history, and a memory of pixels, even if empty."""
    records = read_history(run)
    return records[0].image[-1] if records else read_tensors(folder / "replay.safetensors")["images"].shape[-1]


def _settings(file: Path) -> tuple[dict[str, Any], str]:
    """A run's configuration, as it stands in its file: only what is needed is checked, and no plug-in is imported."""
    try:
        text = file.read_text(encoding="utf-8")
        tree = dict(parse_yaml(text))
        if not all(isinstance(tree[section], dict) for section in ("data", "encoder", "labels", "classifier")):
            raise ValueError("a section has no keys")
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(str(file), f"cannot be read ({type(error).__name__}: {error})") from None
    return tree, text


def _encoder(tree: Mapping[str, Any], run: Path, trust_code: bool) -> EncoderConfig:
    """The architecture; weights that training began with are replaced, and may be a path of this machine."""
    kept = {key: value for key, value in tree["encoder"].items() if key != "weights"}
    settings: type[EncoderConfig] = EncoderConfig
    if is_code(name := kept.get("name")):
        if not trust_code:
            problem = f"is needed for {run}, whose encoder is code: {name}"
            raise ConfigError(
                "--trust-code", f"{problem}; it runs with your rights, so read it first if others wrote it"
            )
        kept["name"] = in_run(str(name), dict(tree.get("code") or {}), run)
        settings = cast(type[EncoderConfig], own_settings("encoder.name", kept["name"]))
    try:
        return settings.model_validate_json(json.dumps(kept))
    except ValidationError as error:
        raise _invalid(run / "config.yaml", error) from None


def _results(run: Path) -> dict[str, Any]:
    file = run / "results.json"
    remedy = f"`python -m kaizen eval {run}` writes it anew"
    try:
        return read_results(file)
    except FileNotFoundError:
        problem = f"is missing, and only it has the classes' names and the normalisation; {remedy}"
        raise ConfigError(str(file), problem) from None
    except DAMAGED as error:
        raise ConfigError(str(file), f"cannot be read ({type(error).__name__}: {error}); {remedy}") from None


def _taught(
    tree: Mapping[str, Any], results: Mapping[str, Any], task: int, tensors: Mapping[str, Tensor], outputs: int
) -> dict[Reader, tuple[int, ...]]:
    """Outputs of each reader for classes of which the run has seen a label."""
    tasks, classifier = results["stream"]["tasks"][: task + 1], tree["classifier"]
    seen = {int(label) for part in tasks for label in part["classes"]} if tree["labels"].get("fraction", 1) else set()
    taught: dict[Reader, tuple[int, ...]] = {}
    if (measured := tensors.get("statistics.classes")) is not None:
        taught["statistics"] = tuple(measured.tolist())
        seen &= set(taught["statistics"])  # a joint stream also lists classes that only test images have
    trained = classifier.get("weight", 1) or classifier.get("align") == "statistics"
    taught["classifier"] = tuple(sorted(label for label in seen if label < outputs)) if trained else ()
    return {reader: taught[reader] for reader in READERS if reader in taught}


def _origin(tree: Mapping[str, Any], text: str, results: Mapping[str, Any], task: int) -> dict[str, Any]:
    """Where a model comes from, in plain values."""
    recipe, preset = read_header(text)
    stream = results["stream"]

    def section(name: str, *keys: str) -> dict[str, Any]:
        held = tree.get(name)
        return {key: held[key] for key in keys if key in held} if isinstance(held, dict) else {}

    return {
        "recipe": recipe or results.get("recipe"),
        "preset": preset,
        "config_hash": results.get("config_hash"),
        "data": section("data", "config", "revision")
        | {"source": _public(str(tree["data"].get("source"))), "digest": results["data"].get("digest")},
        "stream": {"kind": stream["kind"], "tasks": stream["tasks"]},
        "extensions": [
            part | {"source": _public(part["source"])}
            for part in results.get("extensions", [])
            if part["first_task"] <= task
        ],
        "labels": section("labels", "fraction"),
        "method": section("method", "name", "weight"),
        "distill": section("distill", "name"),
        "replay": section("replay", "policy", "per_class", "fraction", "total", "bytes"),
        "optim": section("optim", "name", "epochs", "batch"),
        "seed": section("run", "seed").get("seed"),
    }


def _public(source: str) -> str:
    """A source without the folders of this machine, which are nobody else's concern."""
    kind, colon, place = source.partition(":")
    return source if not colon or kind == "hub" else f"{kind}:{Path(place).name}"


def _accuracies(results: Mapping[str, Any], task: int, done: int) -> dict[str, Any]:
    """Of each reader its protocol, the accuracies on each task's test images and, after the last task, the metrics."""
    found = {}
    for name, reader in results["readers"].items():
        if task < len(reader["matrix"]):
            numbers = {key: value for key, value in reader.items() if isinstance(value, float)}
            metrics = numbers if task == done - 1 == len(reader["matrix"]) - 1 else {}
            found[name] = {"protocol": reader.get("protocol"), "by_task": reader["matrix"][task], **metrics}
    return found


def _invalid(file: Path, error: ValidationError) -> ConfigError:
    """What is wrong with a description, by its first problem."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"])) or "it"
    return ConfigError(str(file), f"cannot be used: {where}: {first['msg']} (was it written by another version?)")
