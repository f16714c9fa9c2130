"""Numbers derived from the configuration: steps, learning rates, warm-up, and errors."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kaizen.cli.resolve import resolve
from kaizen.config.schema import Config
from kaizen.errors import ConfigError
from kaizen.training.plan import cautions, describe, make_plan


def config(**overrides: str) -> Config:
    return resolve("cifar100-simclr", {key.replace("__", "."): value for key, value in overrides.items()})[1]


def test_steps_and_rates_of_the_published_recipe() -> None:
    plan = make_plan(config(), [10000] * 5, 4)
    assert [task.steps_per_epoch for task in plan.tasks] == [39] * 5
    assert [task.first_step for task in plan.tasks] == [19500 * i for i in range(5)]
    assert plan.steps == 97500
    assert (plan.lr, plan.tasks[0].warmup_steps) == (1.0, 390)
    assert plan.rate(0, 0, plan.lr) == 0.003
    assert plan.rate(0, 389, plan.lr) == plan.rate(3, 390, plan.lr) == 1.0
    assert plan.rate(0, 0, 0.001) == 0.001, "the warm-up starts at no more than the rate itself"
    assert 0 < plan.rate(0, 19499, plan.lr) < 1e-6


def test_the_rate_follows_the_global_batch_and_the_classifiers_does_not() -> None:
    plan = make_plan(config(optim__batch="512"), [10000], 1)
    assert plan.lr == 2.0
    assert plan.rate(0, plan.tasks[0].warmup_steps, 0.1) == 0.1


def test_a_minimum_above_a_groups_rate_does_not_lift_it() -> None:
    plan = make_plan(config(optim__min_lr="0.5", optim__warmup_epochs="0"), [10000], 1)
    assert [plan.rate(0, step, 0.1) for step in (0, 19499)] == [0.1, 0.1]
    assert plan.rate(0, 19499, 1.0) == pytest.approx(0.5, abs=1e-6)


def test_a_task_smaller_than_the_batch_has_one_step_an_epoch_with_all_its_images() -> None:
    settings = config(optim__batch="256")
    plan = make_plan(settings, [300, 100], 1)
    assert [(task.batch, task.steps_per_epoch) for task in plan.tasks] == [(256, 1), (100, 1)]
    assert any("cut to 100 by the smallest task" in line for line in describe(settings, plan, 1))


def test_random_weights_are_told_where_others_may_be_expected(tmp_path: Path) -> None:
    def told(**keys: str) -> str:
        return "\n".join(describe(settings := config(**keys), make_plan(settings, [1000], 1), 1))

    assert "encoder             resnet18\n" in told()
    assert "encoder             timm:test_resnet, random weights (encoder.weights " in told(
        encoder__name="timm:test_resnet"
    )
    assert "caution             encoder.freeze 2 keeps random weights" in told(encoder__freeze="2")
    file = tmp_path / "w.safetensors"
    save_file({"conv1.weight": torch.zeros(1)}, file)
    named = told(encoder__freeze="2", encoder__weights=str(file))
    assert f"encoder             resnet18, weights of {file}\n" in named
    assert "keeps random" not in named


@pytest.mark.parametrize(
    ("batch", "images", "world", "parts", "least"),
    [
        ("3", [100], 4, 1, 4),
        ("256", [100, 3], 4, 1, 4),
        ("256", [100, 1], 1, 1, 2),
        ("15", [100], 4, 4, 16),
        ("3", [9], 1, 2, 4),
    ],
)
def test_a_process_without_an_image_is_refused(
    batch: str, images: list[int], world: int, parts: int, least: int
) -> None:
    with pytest.raises(ConfigError, match=f"at least {least}") as caught:
        make_plan(config(optim__batch=batch), images, world, parts)
    assert caught.value.key == "optim.batch"
    make_plan(config(optim__batch=str(least), optim__warmup_epochs="0"), [100], world, parts)


def test_a_warm_up_of_one_step_is_left_out() -> None:
    plan = make_plan(config(optim__warmup_epochs="1"), [200], 1)
    assert plan.tasks[0].warmup_steps == 0
    assert plan.rate(0, 0, plan.lr) == plan.lr


@pytest.mark.parametrize(
    ("keys", "images", "expected"),
    [
        ({}, 10000, ""),
        ({"optim__warmup_epochs": "2"}, 10000, "after 78 steps of warm-up: .* 100 steps .optim.warmup_epochs 3.$"),
        ({"optim__warmup_epochs": "0"}, 300, "classifier_lr 0.1 after 0 steps of warm-up"),
        ({"optim__warmup_epochs": "0", "optim__classifier_lr": "0.09"}, 10000, ""),
        ({"optim__warmup_epochs": "0", "classifier__hidden": "[]"}, 10000, ""),
        ({"optim__warmup_epochs": "0", "classifier__weight": "0"}, 10000, ""),
        ({"optim__warmup_epochs": "0", "optim__name": "adamw"}, 10000, ""),
    ],
)
def test_a_classifier_that_may_die_is_told_at_the_start(keys: dict[str, str], images: int, expected: str) -> None:
    settings = config(**keys)
    lines = cautions(settings, make_plan(settings, [10000, images], 1))
    assert len(lines) == bool(expected)
    assert re.search(expected, "".join(lines))
