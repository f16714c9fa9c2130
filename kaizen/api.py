"""The library's face: `Config`, `Trainer` and `load_model`, for notebooks and scripts of one's own."""

import json
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kaizen.config.schema as schema
from kaizen.cli.resolve import default_directory, resolve
from kaizen.cli.shipped import preset_of
from kaizen.config.data import DataConfig, parts_of
from kaizen.config.yaml import dump_yaml
from kaizen.errors import ConfigError
from kaizen.run.places import user_path
from kaizen.takeaway.load import load_model as load_model

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

DATA = "data"
"""Directory of a run that holds the data that were given as objects."""


@dataclass(frozen=True, repr=False)
class Config:
    """A checked configuration: `config.optim.epochs` reads a key, and `print(config)` shows all as YAML.

    recipe, preset: the names that it came from; keys: all keys.
    """

    recipe: str
    preset: str | None
    keys: schema.Config[Any]

    @classmethod
    def load(
        cls, recipe: str | Path = "digits", overrides: Mapping[str, Any] | None = None, *, preset: str | None = None
    ) -> "Config":
        """The configuration of a shipped recipe or of a YAML file, such as the config.yaml of a run.

        Args:
            overrides: values by dotted key, as {"optim.epochs": 2}, in Python or as text of the command line.
            preset: a shipped preset, which replaces keys of the recipe, below the overrides.

        Raises:
            ConfigError: names the key, what was found and what is allowed.
        """
        given = {
            key: value if isinstance(value, str) else json.dumps(value) for key, value in (overrides or {}).items()
        }
        file = Path(recipe).expanduser()
        if preset is None and file.is_file():
            preset = preset_of(str(file))
            name, keys = resolve(str(file.absolute()), given)
        else:
            name, keys = resolve(str(recipe), given, preset)
        return cls(name, preset, keys)

    def __getattr__(self, name: str) -> Any:
        if name in schema.Config.model_fields:
            return getattr(self.keys, name)
        raise AttributeError(f"Config has no attribute {name!r}")

    def __repr__(self) -> str:
        return schema.header(self.recipe, self.preset) + dump_yaml(self.keys.tree())


def _splits_of(data: Any, keys: DataConfig) -> "dict[str, Dataset]":
    """Data that were given as objects, by the names of their splits; ConfigError if one is missing."""
    from datasets import Dataset

    names = list(dict.fromkeys(name for split in keys.splits.values() for name in parts_of(split)))
    one = len(names) == 1
    data = (data,) if one and isinstance(data, Dataset) else data
    if not isinstance(data, Mapping) and not (isinstance(data, tuple | list) and len(data) == len(names)):
        found = f"{len(data)} objects" if isinstance(data, tuple | list) else f"one {type(data).__name__}"
        others = "one Dataset" if one else "a pair of Datasets, to train on and to test on"
        if len(names) > 2:
            others = f"{len(names)} Datasets in this order"
        raise ConfigError("data", f"is {found}; allowed: a DatasetDict with {' and '.join(names)}, or {others}")
    held = dict(data) if isinstance(data, Mapping) else dict(zip(names, data, strict=True))
    if lacking := [name for name in names if name not in held]:
        hint = "; data.test_fraction=0.2 needs no test split" if lacking == [keys.splits.get("data.test_split")] else ""
        raise ConfigError("data", f"has no split {lacking[0]!r}; allowed: {' and '.join(names)}{hint}")
    return held


class Trainer:
    """Trains a configuration, or resumes its run: `Trainer(config).run()`.

    Args:
        config: from `Config.load`.
        data: images and labels to train on in place of `data.source`: a DatasetDict with the splits of the
            configuration (train and test), or the two as Datasets; with data.test_fraction, one Dataset. They are
            saved in the run directory, so that the run can be resumed and evaluated without these objects.
        callbacks: objects with some of `on_step(step, terms)` and `on_task_end(task, accuracies)`; see README.md.

    Raises:
        ConfigError: the data have no such splits.
    """

    def __init__(
        self,
        config: Config,
        data: "DatasetDict | Sequence[Dataset] | Dataset | None" = None,
        callbacks: Sequence[Any] = (),
    ) -> None:
        keys = config.keys
        where = keys.run.dir or default_directory(config.recipe, config.preset, keys.run.seed)
        self.path = user_path("run.dir", where).absolute()
        """The run directory."""
        self.callbacks, self._data = tuple(callbacks), None
        for callback in self.callbacks:
            named = [name for name in ("on_step", "on_task_end") if callable(getattr(callback, name, None))]
            if isinstance(callback, type) or not named:
                raise ConfigError("callbacks", f"contain {callback!r}; allowed: objects with on_step or on_task_end")
        if data is not None:
            self._data = _splits_of(data, keys.data)
            places = {
                "source": f"disk:{self.path / DATA}",
                "cache_dir": keys.data.cache_dir or str(self.path / "images"),
            }
            keys = keys.model_copy(update={"data": keys.data.model_copy(update=places)})
        self.config = Config(config.recipe, config.preset, keys)

    def run(self) -> dict[str, Any]:
        """Train every task that is not done, evaluate after each, and return the content of results.json.

        Ctrl-C, or the stop button of a notebook, saves a checkpoint first; a further call resumes the run.

        Raises:
            ConfigError: data or keys do not fit.
            Stopped: the run was asked to stop, and everything is saved.
            TrainingFailed: a loss is not finite; the last checkpoint is kept.
        """
        from kaizen.run.stop import StopRequest
        from kaizen.training.trainer import Trainer as Training

        save = self._save if self._data is not None else lambda: None

        class WithData(Training):
            def _prepare(self) -> None:
                self.parallel.on_main(save)
                super()._prepare()

        stop, held = StopRequest(), {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            stop.install()
            stop.watch(self.path)
            keys = self.config.keys
            WithData(self.config.recipe, keys, self.path, stop, self.config.preset, callbacks=self.callbacks).run()
        finally:
            for number, handler in held.items():
                signal.signal(number, handler)
        return dict(json.loads((self.path / "results.json").read_text(encoding="utf-8")))

    def _save(self) -> None:
        """Write the data into the run directory, complete or not at all."""
        import shutil

        from datasets import DatasetDict

        final, new = self.path / DATA, self.path / f".{DATA}.tmp"
        shutil.rmtree(new, ignore_errors=True)
        DatasetDict(self._data).save_to_disk(new)
        shutil.rmtree(final, ignore_errors=True)
        new.rename(final)
