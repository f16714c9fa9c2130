"""`python -m kaizen`: recipes and show, and their errors."""

import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from kaizen.cli.shipped import shipped_presets, shipped_recipes
from kaizen.commands import COMMANDS, run


def test_recipes_lists_every_recipe_and_every_preset_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["recipes"], COMMANDS) == 0
    recipes, presets, own = (part.splitlines() for part in capsys.readouterr().out.split("\n\n"))
    assert own[0].startswith("Parts of your own")
    assert [line.split()[0] for line in recipes] == list(shipped_recipes())
    assert [line.split()[:2] for line in presets] == [["--preset", name] for name in shipped_presets()]
    assert all(len(line.split()) > 4 for line in recipes + presets)


@pytest.mark.parametrize("recipe", shipped_recipes())
def test_show_prints_yaml_and_derived_numbers(recipe: str, capsys: pytest.CaptureFixture[str], cache: str) -> None:
    assert run(["show", recipe, "--data.cache_dir", cache], COMMANDS) == 0
    out = capsys.readouterr().out
    assert yaml.safe_load(out)["run"]["seed"] == 0
    if recipe == "digits":
        assert "# names of tasks      0: 1, 4; 1: 9, 6; 2: 3, 5; 3: 0, 2; 4: 8, 7" in out
    if recipe == "cifar100-simclr":
        assert "steps per epoch     39, 39, 39, 39, 39; 500 epochs per task" in out
        assert "learning rate       1 = 1 x 256 / 256; classifier 0.1; lars, warm-up 390 steps" in out


def test_show_tells_the_numbers_of_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "cifar100-simclr", "--optim.batch", "512", "--stream.tasks", "10"], COMMANDS) == 0
    out = capsys.readouterr().out
    assert "steps per epoch     9, 9, 9, 9, 9, 9, 9, 9, 9, 9" in out
    assert "learning rate       2 = 1 x 512 / 256" in out


def test_show_of_a_known_source_needs_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "cifar100-mocov2plus", "--stream.kind", "joint"], COMMANDS) == 0
    assert "tasks               1, training images 50000" in capsys.readouterr().out


def test_show_tells_the_sizes_of_random_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "cifar100-simclr", "--stream.kind", "data", "--stream.tasks", "3"], COMMANDS) == 0
    assert "tasks               3, training images 16667, 16667, 16666" in capsys.readouterr().out


@pytest.mark.parametrize("tokens", [["shwo"], ["show", "digitz"], ["show", "--optim.lr", "x"], ["recipes", "all"]])
def test_mistakes_end_with_code_2_and_one_line(tokens: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tokens, COMMANDS) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([], COMMANDS) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


def test_the_installed_command_is_this_one_and_it_trains(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module, _, function = project["scripts"]["kaizen"].partition(":")
    monkeypatch.setattr("sys.argv", ["kaizen", "train", "--help"])
    assert getattr(import_module(module), function)() == 0
    assert "kaizen train" in capsys.readouterr().out


def test_show_tells_what_it_chose_and_what_it_left_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, cache: str
) -> None:
    (tmp_path / "mine.yaml").write_text("data: {source: cifar10}\nmethod: {name: vicreg, covariance: 2}")
    assert run(["show", str(tmp_path / "mine.yaml"), "--method.name", "byol", "--optim.epochs", "20"], COMMANDS) == 0
    out = capsys.readouterr().out
    assert yaml.safe_load(out)["optim"]["warmup_epochs"] == 2
    assert "# auto                optim.warmup_epochs 2: a tenth of 20 epochs; published: 10" in out
    assert "# left out            method keys of the recipe, which do not apply to byol: covariance 2" in out
