"""Runs with mixed images, stored logits or an aligned classifier that are killed: they resume exactly."""

from pathlib import Path

import pytest
from conftest import Launcher
from runs import log_of, snapshots, wait_for_step
from safetensors.torch import load_file

ALIGNED = ["--classifier.align", "statistics", "--classifier.align_steps", "50"]
USES = {"lump": ["--preset", "lump"], "derpp": ["--preset", "derpp"], "aligned": ALIGNED}


# Stored logits lie in the memory's file; the other two keep less, and are slow.
@pytest.mark.parametrize(
    "preset", [pytest.param(name, marks=() if name == "derpp" else pytest.mark.slow) for name in USES]
)
def test_a_run_killed_in_every_task_ends_byte_for_byte_as_one_that_was_not(
    preset: str, tiny: list[str], launcher: Launcher, tmp_path: Path
) -> None:
    arguments = [*tiny, *USES[preset], "--stream.tasks", "2", "--optim.lr", "0.2"]
    arguments += ["--classifier.distill_weight", "0" if preset == "lump" else "0.5"]
    whole, cut = ([*arguments, "--run.dir", str(tmp_path / name)] for name in "ab")
    assert launcher.run(whole) == 0
    for step in (3, 20):  # tasks of 16 and 14 steps
        process = launcher.start(cut)
        wait_for_step(tmp_path / "b", step, process.is_alive)
        process.kill()
        process.join()
    assert launcher.run(cut) == 0
    assert snapshots(tmp_path / "a") == snapshots(tmp_path / "b")
    lines = [log_of(tmp_path / name) for name in "ab"]
    assert [line["loss/total"] for line in lines[0]] == [line["loss/total"] for line in lines[1]]
    held = load_file(tmp_path / "a/tasks/task-01/replay.safetensors")
    assert ("logits" in held) == (preset == "derpp")
