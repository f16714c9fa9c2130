"""The library's face: snippets of kaizen/README.md, and what it refuses."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

import kaizen
from kaizen import Config, Trainer
from kaizen.errors import ConfigError, TrainingFailed

README = Path(kaizen.__file__).parent / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.slow
def test_the_snippets_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, str(README), "exec"), names)
    said = capsys.readouterr().out
    assert "'0', '1', '2'" in said
    assert re.search(r"^4 \[(\d\.\d+, ){4}", said, re.MULTILINE)
    colours = json.loads((tmp_path / "runs/colours/results.json").read_text())
    assert colours["class_names"] == ["red", "green", "blue"]
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
    # The data were kept: the run is evaluated without the objects, and resumed with them.
    from kaizen.commands import COMMANDS, run

    assert run(["eval", "runs/colours"], COMMANDS) == 0
    keys = {**names["keys"], "run.dir": "runs/colours", "stream.tasks": 3}
    assert Trainer(Config.load("digits", keys), data=(names["pictures"](48), names["pictures"](12))).run()
    with pytest.raises(ConfigError, match="other images or labels"):
        Trainer(Config.load("digits", keys), data=(names["pictures"](51), names["pictures"](12))).run()


def test_a_configuration_reads_like_its_keys_and_its_own_file(tmp_path: Path) -> None:
    config = Config.load(
        "digits", {"optim.epochs": 2, "eval.readers": ["knn"], "replay.per_class": None}, preset="replay"
    )
    assert (config.optim.epochs, config.eval.readers, config.recipe, config.preset) == (2, ("knn",), "digits", "replay")
    file = tmp_path / "config.yaml"
    file.write_text(repr(config))
    again = Config.load(file)
    assert again == config
    with pytest.raises(AttributeError, match="optimizer"):
        _ = config.optimizer
    with pytest.raises(ConfigError, match="did you mean"):
        Config.load("digits", {"optim.epoch": 2})


def test_what_a_trainer_cannot_take(tmp_path: Path) -> None:
    config = Config.load("digits", {"run.dir": str(tmp_path / "run")})
    with pytest.raises(ConfigError, match="has no split 'test'"):
        Trainer(config, data={"train": None})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is one Dataset; allowed: a DatasetDict with train and test, or a pair"):
        Trainer(config, data=Dataset.from_dict({"image": []}))
    held = Config.load("digits", {"run.dir": str(tmp_path / "run"), "data.test_fraction": 0.2})
    assert Trainer(held, data=Dataset.from_dict({"image": []}))._data.keys() == {"train"}  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="allowed: a DatasetDict with train, or one Dataset"):
        Trainer(held, data=[Dataset.from_dict({})] * 2)

    class Watch:
        def on_step(self, step: int, terms: dict[str, Any]) -> None: ...

    for wrong in (print, Watch):
        with pytest.raises(ConfigError, match="on_step or on_task_end"):
            Trainer(config, callbacks=[wrong])
    assert not (tmp_path / "run").exists()


def test_an_error_in_a_callback_ends_the_run_and_keeps_it(tiny: list[str], cache: str) -> None:
    overrides = {key.removeprefix("--"): value for key, value in zip(tiny[1::2], tiny[2::2], strict=True)}

    class Fails:
        def on_step(self, step: int, terms: dict[str, Any]) -> None:
            if step == 4:
                raise ValueError("my own")

    steps: list[int] = []

    class Counts:
        def on_step(self, step: int, terms: dict[str, Any]) -> None:
            steps.append(step)

    config = Config.load("digits", {**overrides, "stream.tasks": 1, "stream.kind": "joint"})
    trainer = Trainer(config, callbacks=[Counts(), Fails()])
    with pytest.raises((ValueError, TrainingFailed), match="my own"):
        trainer.run()
    assert steps == [1, 2, 3, 4]
    assert json.loads((trainer.path / "status.json").read_text())["state"] == "failed"
    assert list((trainer.path / "checkpoints").iterdir())
