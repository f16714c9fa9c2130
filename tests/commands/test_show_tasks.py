"""`python -m kaizen show`: the tasks with their classes and images, where the data are on this machine."""

from pathlib import Path

import datasets
import pytest
from small_sources import LABELS, no_hub, table, write_parquet

import kaizen.data.origins
from kaizen.commands import COMMANDS, run
from kaizen.errors import ConfigError

__all__ = ["no_hub"]  # a fixture of every test here


def shown(capsys: pytest.CaptureFixture[str], *tokens: str) -> list[str]:
    assert run(["show", *tokens], COMMANDS) == 0
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith(("# task ", "# classes "))]


def test_the_tasks_of_the_digits(capsys: pytest.CaptureFixture[str], cache: str) -> None:
    place = ["digits", "--data.cache_dir", cache]
    assert shown(capsys, *place, "--stream.classes", "[[7,1],[0]]") == [
        "# task 0              289 to train, 72 to test, 2 classes: 7, 1",
        "# task 1              142 to train, 36 to test, 1 class: 0",
    ]
    lines = shown(capsys, *place, "--stream.sizes", "5,1,2")
    assert [line.split(", ")[2].partition(":")[0] for line in lines] == ["5 classes", "1 class", "2 classes"]
    assert len(shown(capsys, *place, "--stream.kind", "column", "--data.task_column", "label")) == 10
    (joint,) = shown(capsys, *place, "--preset", "joint", "--stream.classes", "[[7,1],[0]]")
    assert joint == "# task 0              joint: 431 to train, 108 to test, 3 classes: 7, 1, 0"


def test_many_classes_are_cut_to_fit_a_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=[f"a long name {number}" for number in range(40)])
    label = ([number % 40 for number in range(80)], names)
    source = write_parquet(tmp_path / "data", table(80, label=label), table(40, 100, label=(label[0][:40], names)))
    keys = ["--data.source", source, "--data.cache_dir", str(tmp_path / "cache"), "--replay.per_class", "1"]
    lines = shown(capsys, *keys, "--stream.sizes", "30,1")
    assert all(len(line) <= 100 for line in lines)
    assert "30 classes: a long name" in lines[0]
    assert lines[0].endswith(" more")


def test_without_the_data_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = shown(capsys, "cifar100-simclr", "--stream.sizes", "50,10,10,10,10,10")
    assert line == "# classes             cifar100 is not on this machine, so the classes of its tasks are not shown"


def test_a_copy_of_the_hub_is_shown_without_being_decoded_or_asked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(request: object) -> tuple[datasets.Dataset, datasets.Dataset]:
        if not datasets.config.HF_HUB_OFFLINE:
            raise ConfigError("data.source", "the hub was asked")
        columns = {"img": table(12)["image"], "fine_label": [number % 3 for number in range(12)]}
        features = datasets.Features({"img": datasets.Image(), "fine_label": LABELS})
        split = datasets.Dataset.from_dict(columns, features=features)
        return split, split

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(kaizen.data.origins, "open_library", held)
    monkeypatch.setattr(kaizen.data.origins, "_check_names", lambda request: None)
    keys = ["--data.cache_dir", str(tmp_path), "--stream.classes", "[[eel,cat],[dog]]"]
    assert shown(capsys, "cifar100-simclr", *keys) == [
        "# task 0              8 to train, 8 to test, 2 classes: eel, cat",
        "# task 1              4 to train, 4 to test, 1 class: dog",
    ]
    assert not list(tmp_path.iterdir())
    assert not datasets.config.HF_HUB_OFFLINE
    assert run(["show", "cifar100-simclr", *keys, "--stream.classes", "[[ele]]"], COMMANDS) == 2
    assert "stream.classes: names 'ele'; did you mean eel?" in capsys.readouterr().err
