"""The configuration: one typed, frozen object, checked once at the start; a YAML section is a class with defaults.

Only pydantic is imported here, so that a wrong key is reported before any heavy import. The trainer checks what depends
on the data (classes of an unknown data set, steps per epoch), also before any work.
"""

import hashlib
import json
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import Field, SerializeAsAny

from kaizen.config.data import DataConfig, LabelsConfig, StreamConfig
from kaizen.config.encoder import EncoderConfig
from kaizen.config.extension import Extension
from kaizen.config.memory import BUDGETS, ReplayConfig, StatisticsConfig
from kaizen.config.optim import OptimConfig
from kaizen.config.types import AUTO, Auto, Count, NonNegative, OneOf, Positive, Section, Seed, Text
from kaizen.config.views import ViewConfig
from kaizen.plugins import short

READERS = OneOf(
    "eval.readers", ("classifier", "statistics", "linear_probe_seen", "linear_probe_all", "knn", "memory_probe", "ncm")
)
"""In the order of results.json."""
Reader = Annotated[str, READERS]

# Keys of where results are kept and what is measured, not of what is trained: a run may resume with different values.
FREE_KEYS = (
    *("run.dir", "run.resume", "run.checkpoint_every", "run.keep_checkpoints", "run.graph", "run.deterministic"),
    "run.allow_changed_code",
    *("data.cache_dir", "data.workers", "teacher.shard", "eval.readers", "log"),
)
LATER_KEYS: dict[str, Any] = {
    **dict.fromkeys(("data.task_column", "stream.classes", "stream.sizes", "optim.images", "encoder.weights")),
    "data.test_fraction": None,
    "data.nested": False,
    "encoder.freeze": 0,
    "encoder.drop_path": 0.0,
    "data.store": "pixels",
    "eval.resize": None,
}
"""Keys that earlier versions did not have; with these defaults, which do what those did, they are not hashed."""
UNSETTLED = ("data.store", "eval.resize")
"""Those of LATER_KEYS that are `auto` until the data decide."""
LATER_IN_EXTENSIONS = ("data.store", "data.test_fraction", "data.nested")
"""Those of LATER_KEYS that earlier extensions did not have; the hash of an extension contains the others."""
PLACE_KEYS = ("data.source", "data.config", "data.revision")
"""Location of the data: a run may resume from a different place with the same data, identified by their digest."""


class RunConfig(Section):
    dir: Text | None = Field(None, description="run directory; null: runs/RECIPE[-PRESET]-seedN")
    seed: Seed = Field(0, description="seed of initialisation, order, views, replay")
    resume: Literal["auto", "never", "must"] = Field(
        "auto",
        description="auto: resume a run in the directory; never: it must contain none; must: it must contain one",
    )
    checkpoint_every: int = Field(500, ge=0, description="steps between checkpoints; 0: only at task ends")
    keep_checkpoints: Count = Field(2, description="number of newest checkpoints kept")
    graph: Literal["auto", "off", "must"] = Field(
        "auto",
        description="steps on one GPU; auto: recorded as a CUDA graph after a few ordinary steps and replayed, where "
        "possible; off: ordinary steps; must: end the run if steps cannot be recorded",
    )
    deterministic: bool = Field(False, description="on GPUs, only kernels that give the same bits in every run; slower")
    allow_changed_code: bool = Field(
        False, description="resume although the file of an own method, encoder or other part has changed"
    )


class MethodSettings(Section):
    """Keys that all SSL methods share; the settings of each method extend this class."""

    name: str = Field(description="SSL method")
    weight: NonNegative = Field(1.0, description="weight of the SSL loss")
    projector_hidden: Count = Field(2048, description="hidden size of the projector")
    projector_out: Count = Field(128, description="size of the projections")


class DistillConfig(Section):
    name: str = Field("auto", description="distiller of the features; auto: the method's own")
    weight: NonNegative | None = Field(
        None, description="weight of the distillation loss; null: the distiller's default"
    )
    temperature: Positive | None = Field(
        None, description="temperature of the contrastive, pnr and knowledge distillers; null: 0.2, 0.2 and 0.1"
    )
    negative_weight: NonNegative | None = Field(
        None, description="pnr; weight of pushing away, relative; null: byol, simsiam 0.5, barlow 1, vicreg 0.92"
    )
    hidden: Count = Field(2048, description="hidden size of the distillation predictor")


class ClassifierConfig(Section):
    hidden: tuple[Count, ...] = Field((1000,), description="sizes of the hidden layers; []: a linear classifier")
    weight: NonNegative = Field(1.0, description="weight of the cross-entropy to the labels")
    distill_weight: NonNegative | Literal["class_ratio"] = Field(
        2.0,
        description="weight of the cross-entropy to the old classifier; class_ratio: old classes / new classes",
    )
    distill: Literal["soft_label", "stored_logits"] = Field(
        "soft_label",
        description="what keeps the classifier; soft_label: cross-entropy to the old classifier; stored_logits: mean "
        "squared error, on replay images, to the logits stored with them at the end of their task",
    )
    stop_gradient: bool = Field(True, description="false lets the classifier losses train the encoder too")
    align: Literal["none", "statistics"] = Field(
        "none",
        description="statistics: after each task, train the classifier further on features and on draws from the "
        "statistics of past classes",
    )
    align_steps: Count = Field(1000, description="steps of align, on 128 features each")
    align_lr: Positive = Field(
        0.0025, description="learning rate of align (AdamW, falls to 0 by cosine), for features of standard deviation 1"
    )


class TeacherConfig(Section):
    batchnorm: Literal["batch", "running"] = Field(
        "batch", description="the teacher's BatchNorm uses batch statistics, or its frozen running statistics"
    )
    shard: bool = Field(False, description="under FSDP, shard the teacher's weights over the processes")


class EvalConfig(Section):
    readers: tuple[Reader, ...] = Field(
        ("classifier", "statistics", "linear_probe_seen", "linear_probe_all", "knn"),
        min_length=1,
        description="readers of the features, each with its own accuracy matrix: the jointly trained classifier; the "
        "classifier made from the statistics of past classes; linear probes on training images of the tasks seen or "
        "of all; nearest neighbours of the tasks seen; memory_probe and ncm (nearest mean): on the replay memory",
    )
    resize: Auto[Count | None] = Field(
        AUTO,
        description="shorter side in pixels of images that are not augmented, before their centre is cropped, with "
        "data.store files; auto: 256 / 224 of image_size there, null with pixels",
    )
    knn_k: Count = Field(20, description="number of neighbours that vote; at most the number of training images")


class LogConfig(Section):
    every_steps: Count = Field(10, description="steps between log lines (and checks for non-finite losses)")
    wandb: Literal["disabled", "offline", "online"] = Field("disabled", description="Weights & Biases")
    project: str = Field("kaizen", description="wandb project")
    name: str | None = Field(None, description="wandb run name; null: the run directory's name")


M = TypeVar("M", bound=MethodSettings)


class Config(Section, Generic[M]):
    """The whole configuration of a run."""

    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    stream: StreamConfig = StreamConfig()
    labels: LabelsConfig = LabelsConfig()
    encoder: EncoderConfig = EncoderConfig()
    method: SerializeAsAny[M]
    distill: DistillConfig = DistillConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    teacher: TeacherConfig = TeacherConfig()
    replay: ReplayConfig = ReplayConfig()
    statistics: StatisticsConfig = StatisticsConfig()
    views: tuple[ViewConfig, ...] = Field((ViewConfig(), ViewConfig()), min_length=2, max_length=16)
    optim: OptimConfig = OptimConfig()
    eval: EvalConfig = EvalConfig()
    log: LogConfig = LogConfig()
    extensions: tuple[Extension, ...] = Field((), description="parts of the stream that `kaizen extend` added")

    def tree(self) -> dict[str, Any]:
        """Nested dictionary of all keys, as in config.yaml; without `extensions` where there are none."""
        return self.model_dump(mode="json", exclude=None if self.extensions else {"extensions"})

    def fixed(self) -> dict[str, Any]:
        """Flat dictionary of the keys that affect the tasks before any extension; a digest identifies the data."""
        return fixed_keys(flatten(self.model_dump(mode="json", exclude={"extensions"})))

    def hash(self, *, places: bool = False, extensions: int = 0) -> str:
        """SHA-256 (16 hex digits) of the keys that affect the result; with `places`, also of PLACE_KEYS.

        Args:
            extensions: number of the first extensions whose keys count too.
        """
        named = {key: getattr(self.data, key.partition(".")[2]) for key in PLACE_KEYS} if places else {}
        for number, extension in enumerate(self.extensions[:extensions]):
            own = fixed_keys(flatten(extension.model_dump(mode="json")))
            for key, value in own.items():
                if key not in LATER_IN_EXTENSIONS or not is_unchanged(key, value):
                    named[f"extensions.{number}.{key}"] = value
        return hash_keys(self.fixed() | named)

    def chapter(self, number: int) -> "Config[M]":
        """The configuration of a chapter of the stream: 0 is the run's own, the others are those of its extensions."""
        return self if number == 0 else self.model_copy(update=dict(self.extensions[number - 1]))

    def with_store(self, store: Any, resize: Any) -> "Config[M]":
        """The configuration with these values of data.store and eval.resize."""
        data, evaluation = (
            section.model_copy(update={key: value})
            for section, key, value in ((self.data, "store", store), (self.eval, "resize", resize))
        )
        return self.model_copy(update={"data": data, "eval": evaluation})

    def replay_budget(self) -> tuple[str, float]:
        """The replay budget's kind and size; auto: without a budget, a fraction of each class, at least 5 images."""
        for kind in BUDGETS:
            if (size := getattr(self.replay, kind)) is not None:
                return kind, size
        return AUTO, 0.01


def with_numbers(config: Config, held: Any) -> Config:
    """The configuration with every `auto` replaced by the value in the tree of another one, where it has one."""
    update: dict[str, Any] = {}
    for name in Config.model_fields if isinstance(held, dict) else ():
        section, other = getattr(config, name), held.get(name)
        if isinstance(section, Section) and isinstance(other, dict):
            taken = {key: other[key] for key, value in section if value == AUTO and key in other}
            update[name] = section.model_copy(update=taken)
    return config.model_copy(update=update)


def settled(config: Config, held: dict[str, Any]) -> Config:
    """The configuration with the data.store and eval.resize of a run's tree where they are open; early runs have none.

    An early run stored pixels. What the data decide is then not asked again, which could give another answer.
    """
    found = []
    for dotted in UNSETTLED:
        name, _, key = dotted.partition(".")
        value = getattr(getattr(config, name), key)
        found.append((held.get(name) or {}).get(key, LATER_KEYS[dotted]) if value == AUTO else value)
    return config.with_store(*found)


def header(recipe: str, preset: str | None) -> str:
    """Comment lines above a resolved configuration: its recipe and preset, which the keys do not contain."""
    return f"# recipe: {recipe}\n" + (f"# preset: {preset}\n" if preset else "")


def read_header(text: str) -> tuple[str | None, str | None]:
    """Recipe and preset from the lines that `header` wrote; None if a line is missing."""
    said = dict(line[2:].split(": ", 1) for line in text.splitlines()[:2] if line.startswith("# ") and ": " in line)
    return said.get("recipe"), said.get("preset")


def is_free(key: str) -> bool:
    """Whether a dotted key is one of FREE_KEYS, which do not affect the result."""
    return any(key == free or key.startswith(free + ".") for free in FREE_KEYS)


def fixed_keys(flat: dict[str, Any]) -> dict[str, Any]:
    """Those of a flat configuration's keys that affect the result; own parts without the place of their file."""
    return {key: short(value) for key, value in flat.items() if not is_free(key) and key not in PLACE_KEYS}


def hash_keys(flat: dict[str, Any]) -> str:
    """SHA-256 (16 hex digits) of keys and their values, but for LATER_KEYS with their defaults."""
    hashed = {key: value for key, value in flat.items() if not is_unchanged(key, value)}
    return hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()[:16]


def is_unchanged(key: str, value: Any) -> bool:
    """Whether a key is one of LATER_KEYS, with its default."""
    unsettled = key in UNSETTLED and value == AUTO  # as in earlier versions, until the data decide
    return key in LATER_KEYS and (LATER_KEYS[key] == value or unsettled)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested dictionaries (lists of dictionaries by index)."""
    if isinstance(tree, list) and tree and isinstance(tree[0], dict):
        tree = {str(i): item for i, item in enumerate(tree)}
    if not isinstance(tree, dict):
        return {prefix: tree}
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat
