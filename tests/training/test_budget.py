"""A budget of images per task: steps, epochs of which the last is cut, warm-up, and a run."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import log_of, run_of, snapshots, status_of

from kaizen.bench.whole import measure_whole, whole_lines
from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.commands.train import main
from kaizen.config.schema import Config
from kaizen.errors import ConfigError
from kaizen.parallel import Parallel
from kaizen.training.defaults import Facts, suit
from kaizen.training.plan import Plan, cautions, describe, make_plan


def config(**overrides: Any) -> Config:
    given = {key.replace("__", "."): str(value) for key, value in overrides.items()}
    return resolve("cifar100-simclr", given)[1]


CONFIG = config(optim__images=1000, optim__batch=10)
counts = st.lists(st.integers(2, 60), min_size=1, max_size=4)


@given(counts, st.integers(2, 20), st.integers(1, 200), st.integers(0, 5))
@settings(deadline=None)
def test_a_budget_fills_as_many_steps_as_it_can(images: list[int], batch: int, budget: int, warmup: int) -> None:
    optim = CONFIG.optim.model_copy(update={"batch": batch, "images": budget, "warmup_epochs": warmup})
    settings = CONFIG.model_copy(update={"optim": optim})
    if budget < max(min(batch, count) for count in images):
        with pytest.raises(ConfigError, match=r"optim\.images: is .* the images of one step"):
            make_plan(settings, images, 1)
        return
    plan, first = make_plan(settings, images, 1), 0
    for task, count in zip(plan.tasks, images, strict=True):
        assert task.first_step == first
        first += task.steps
        assert 0 <= budget - task.steps * task.batch < task.batch <= count
        assert (task.epochs - 1) * task.steps_per_epoch < task.steps <= task.epochs * task.steps_per_epoch
        assert task.warmup_steps in (0, min(task.steps, warmup * task.steps_per_epoch))
        rates = [plan.rate(plan.tasks.index(task), step, 1.0) for step in range(task.steps)]
        assert all(0 <= rate <= 1 for rate in rates)
    assert plan.steps == first


def test_a_budget_of_whole_epochs_is_these_epochs() -> None:
    keys = {"optim__batch": 250, "optim__warmup_epochs": 1}
    budget, epochs = config(optim__images=30000, **keys), config(optim__epochs=3, **keys)
    assert make_plan(budget, [10000] * 2, 1) == make_plan(epochs, [10000] * 2, 1)


def test_the_length_of_a_task_is_told() -> None:
    settings = config(optim__images=2500, optim__batch=100, optim__warmup_epochs=1)
    plan = make_plan(settings, [1000, 2000], 1)
    assert "steps per epoch     10, 20; 2500 images, 1.25 to 2.5 epochs per task" in describe(settings, plan, 1)
    two, five = (config(optim__epochs=epochs, optim__batch=100, optim__warmup_epochs=1) for epochs in (2, 5))
    extended = Plan(tuple(make_plan(one, [1000], 1).tasks[0] for one in (two, five)))
    assert "steps per epoch     10, 10; 2, 5 epochs" in describe(two, extended, 1)
    one = config(optim__epochs=1, optim__warmup_epochs=0)
    assert any(line.endswith("; 1 epoch per task") for line in describe(one, make_plan(one, [1000], 1), 1))


def test_a_warm_up_of_all_steps_is_told() -> None:
    settings = config(optim__images=1000, optim__batch=100, classifier__hidden="[]")
    plan = make_plan(settings, [1000], 1)
    assert (plan.tasks[0].steps, plan.tasks[0].warmup_steps) == (10, 10)
    assert "optim.warmup_epochs 10 takes all 10 steps of a task with optim.images 1000" in cautions(settings, plan)[0]


@pytest.mark.parametrize(("epochs", "told"), [(1, True), (2, False)])
def test_prototypes_that_stay_frozen_are_told(epochs: int, told: bool) -> None:
    given = {"optim.epochs": str(epochs), "optim.warmup_epochs": "0"}
    settings = resolve("digits-swav", given)[1]
    assert any("method.freeze_epochs 1" in line for line in cautions(settings, make_plan(settings, [290], 1))) == told


def test_an_open_warm_up_is_a_tenth_of_the_epochs_of_the_largest_task(tmp_path: Any) -> None:
    (tmp_path / "mine.yaml").write_text("data: {source: digits}\nmethod: {name: simclr}\noptim: {images: 100000}")
    suited, lines = suit(resolve(str(tmp_path / "mine.yaml"), {})[1], Facts((500, 2000), 50, 8))
    assert suited.optim.warmup_epochs == 5
    assert any("a tenth of 50 epochs" in line for line in lines)
    short, _ = suit(resolve(str(tmp_path / "mine.yaml"), {"optim.images": "2000"})[1], Facts((500, 2000), 50, 8))
    assert short.optim.warmup_epochs == 0


@pytest.fixture
def budgeted(tiny: list[str]) -> list[str]:
    """A run of two tasks with 8 steps each, 3 to an epoch, of the images of four digits."""
    at = tiny.index("--optim.epochs")
    two = ["--stream.classes", "[[3,8],[1,0]]", "--optim.images", "799"]
    return [*tiny[:at], *tiny[at + 2 :], *two]


def test_a_run_ends_its_last_epoch_early_and_resumes_to_the_byte(budgeted: list[str], tmp_path: Any) -> None:
    assert main(budgeted) == 0
    lines = log_of(run_of(budgeted))
    assert [line["epoch"] for line in lines] == [0, 0, 0, 1, 1, 1, 2, 2] * 2
    assert [line["task"] for line in lines] == [0] * 8 + [1] * 8
    assert lines[7]["lr"] < lines[3]["lr"], "the schedule ends with the task"
    assert status_of(run_of(budgeted))["state"] == "done"
    again = [*budgeted, "--run.dir", str(tmp_path / "again")]
    (tmp_path / "again").mkdir()
    (tmp_path / "again/stop").touch()
    assert main(again) == 75
    assert main(again) == 0
    assert snapshots(tmp_path / "again") == snapshots(run_of(budgeted))
    more = [*budgeted, "--optim.images", "900"]
    assert main(more) == 2, "another budget is another run"


def test_the_bench_counts_the_steps_of_the_budget(budgeted: list[str]) -> None:
    settings = resolve(*parse_arguments(budgeted))[1]
    found = measure_whole("digits", settings, 2, True, Parallel())
    for task in found["tasks"]:
        expected = 799 // 90 * task["step"] + sum(map(task.get, ("start", "end", "evaluate")))
        assert task["whole"] == pytest.approx(expected)
    assert "for 799 images per task" in list(whole_lines(found))[-1]
