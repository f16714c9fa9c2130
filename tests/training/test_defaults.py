"""Values that replace auto: they suit the data, are reported if they differ from published values, and are kept."""

from pathlib import Path
from typing import Any

import pytest
from runs import log_of

from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.cli.shipped import shipped_recipes
from kaizen.cli.sweep import SweepRun
from kaizen.commands.sweep import is_done
from kaizen.commands.train import main
from kaizen.config.schema import Config, flatten
from kaizen.config.yaml import parse_yaml
from kaizen.training.defaults import Facts, suit
from kaizen.training.plan import cautions, make_plan

AUTO_KEYS = ("encoder.stem", "optim.name", "optim.lr", "optim.classifier_lr", "optim.batch", "optim.warmup_epochs")


@pytest.fixture
def mine(tmp_path: Path) -> str:
    (tmp_path / "mine.yaml").write_text("data: {source: digits}\nmethod: {name: simclr}")
    return str(tmp_path / "mine.yaml")


def suited(mine: str, facts: Facts, *tokens: str) -> tuple[Config, list[str]]:
    return suit(resolve(*parse_arguments([mine, *tokens]))[1], facts)


def test_large_data_get_the_published_numbers_and_nothing_is_said(mine: str) -> None:
    config, lines = suited(mine, Facts((10000,) * 5, 500, 32))
    optim = config.optim
    assert (optim.name, optim.lr, optim.classifier_lr, optim.weight_decay) == ("lars", 1.0, 0.1, 1e-5)
    assert (optim.batch, optim.epochs, optim.warmup_epochs, config.encoder.stem) == (256, 500, 10, "cifar")
    assert lines == []


@pytest.mark.parametrize(
    ("smallest", "batch", "rate"),
    [(1024, 256, 1.0), (1023, 128, 0.5), (290, 64, 0.25), (100, 32, 0.125), (20, 20, 20 / 256)],
)
def test_the_batch_follows_the_smallest_task_and_the_rate_the_batch(
    mine: str, smallest: int, batch: int, rate: float
) -> None:
    config, lines = suited(mine, Facts((5000, smallest), 500, 8))
    plan = make_plan(config, (5000, smallest), 1)
    assert (config.optim.batch, plan.lr, min(task.batch for task in plan.tasks)) == (batch, rate, batch)
    assert any(f"optim.batch {batch}: the smallest task has {smallest} images" in line for line in lines) == (
        batch < 256
    )


def test_the_rate_follows_a_batch_that_the_smallest_task_cuts_unless_it_is_given(mine: str) -> None:
    facts = Facts((5000, 64), 500, 8)
    config, lines = suited(mine, facts, "--optim.batch", "256")
    assert make_plan(config, facts.images, 1).lr == 0.25
    assert any("optim.lr 0.25" in line and "cuts the batch to 64" in line for line in lines)
    given, _ = suited(mine, facts, "--optim.batch", "256", "--optim.lr", "1")
    assert make_plan(given, facts.images, 1).lr == 1.0


@pytest.mark.parametrize(("side", "stem"), [(8, "cifar"), (64, "cifar"), (65, "imagenet"), (224, "imagenet")])
def test_the_stem_follows_the_size_of_the_images(mine: str, side: int, stem: str) -> None:
    config, lines = suited(mine, Facts((10000,), 500, side))
    assert config.encoder.stem == stem
    assert len(lines) == (stem != "cifar")
    assert suited(mine, Facts((10000,), 500, side), "--encoder.stem", "cifar")[0].encoder.stem == "cifar"


@pytest.mark.parametrize(("epochs", "warmup"), [(500, 10), (100, 10), (30, 3), (5, 0)])
def test_the_warm_up_follows_the_epochs(mine: str, epochs: int, warmup: int) -> None:
    config, lines = suited(mine, Facts((10000,), 500, 32), "--optim.epochs", str(epochs))
    assert config.optim.warmup_epochs == warmup
    assert any(f"optim.warmup_epochs {warmup}: a tenth of {epochs} epochs" in line for line in lines) == (warmup < 10)


@pytest.mark.parametrize(
    ("smallest", "tokens", "rate"),
    [
        (10000, (), 0.1),
        (290, (), 0.04),
        (290, ("--optim.epochs", "5"), 0.01),
        (290, ("--classifier.hidden", "[]"), 0.1),
    ],
    ids=["390 steps", "40 steps", "none", "linear"],
)
def test_the_classifiers_rate_follows_a_short_warm_up_so_that_it_does_not_die(
    mine: str, smallest: int, tokens: tuple[str, ...], rate: float
) -> None:
    config, lines = suited(mine, Facts((5000, smallest), 500, 8), *tokens)
    assert config.optim.classifier_lr == pytest.approx(rate)
    assert any("optim.classifier_lr" in line and "few for hidden layers" in line for line in lines) == (rate < 0.1)
    assert cautions(config, make_plan(config, (5000, smallest), 1)) == []


def test_other_optimizers_and_vits_have_rates_of_their_own(mine: str) -> None:
    facts = Facts((10000,), 500, 32)
    optim = suited(mine, facts, "--optim.name", "adamw")[0].optim
    assert (optim.lr, optim.classifier_lr, optim.weight_decay) == (0.002, 0.001, 1e-5)
    config, lines = suited(mine, facts, "--encoder.name", "vit_tiny", "--data.image_size", "32")
    assert (config.optim.name, config.optim.weight_decay, config.encoder.stem) == ("adamw", 0.05, "cifar")
    assert [line.split()[1] for line in lines] == [
        "optim.name",
        "optim.lr",
        "optim.classifier_lr",
        "optim.weight_decay",
    ]


def test_a_small_memory_is_said(mine: str) -> None:
    _, lines = suited(mine, Facts((10000,), 145, 32))
    assert [line.split(maxsplit=1)[1] for line in lines] == [
        "replay at least 5 images per class: 1% of the smallest class's 145 images is 1; published: 1%"
    ]
    assert not suited(mine, Facts((10000,), 145, 32), "--replay.fraction", "0.01")[1]
    assert "smallest class's 40 images is 1" in suited(mine, Facts((10000,), 40, 32))[1][0]


@pytest.mark.parametrize("recipe", shipped_recipes())
def test_shipped_recipes_leave_nothing_open(recipe: str) -> None:
    _, config = resolve(recipe, {})
    held = flatten(config.model_dump())
    assert not [key for key in AUTO_KEYS if held[key] == "auto"]
    assert config.replay_budget()[0] != "auto"
    small = {"data": config.data.model_copy(update={"store": "pixels"})}
    small |= {"eval": config.eval.model_copy(update={"resize": None})}
    assert suit(config, Facts((64, 5000), 1, 32)) == (config.model_copy(update=small), [])


def test_a_run_keeps_its_numbers_and_resumes_with_them(
    mine: str, tmp_path: Path, cache: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    short: list[Any] = ["--optim.epochs", "1", "--stream.tasks", "2", "--encoder.width", "2", "--distill.hidden", "8"]
    short += ["--method.projector_hidden", "8", "--eval.readers", "classifier", "--log.every_steps", "1"]
    short += ["--classifier.hidden", "8", "--data.cache_dir", cache]
    tokens = [mine, *short, "--run.dir", str(run)]
    assert main(tokens) == 0
    out = capsys.readouterr().out
    assert "auto                optim.batch 128: the smallest task has 7" in out
    held = flatten(parse_yaml((run / "config.yaml").read_text()))
    assert (held["optim.batch"], held["optim.lr"], held["encoder.stem"]) == (128, 1.0, "cifar")
    steps = len(log_of(run))
    assert main(tokens) == 0, "a finished run stays finished"
    assert len(log_of(run)) == steps == 10
    recipe, config = resolve(*parse_arguments(tokens))
    assert is_done(run, SweepRun(recipe, 1, tuple(tokens), config))
    assert not is_done(run, SweepRun(recipe, 1, tuple(tokens), resolve(mine, {"run.seed": "1"})[1]))
    assert main([*tokens, "--optim.batch", "64"]) == 2
    assert "optim.batch was 128 and is now 64" in capsys.readouterr().err
