"""Gradient accumulation as Accelerate sets it: the same global batch, in parts."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import log_of, settings_of

from kaizen.model.methods import method_class
from kaizen.parallel import Batch

ROOT = Path(__file__).parents[2]
# Without BatchNorm and with the classifier alone the loss is a mean over images, which parts do not change.
ADDITIVE = ["--encoder.norm", "group", "--classifier.stop_gradient", "false", "--method.weight", "0"]
ADDITIVE += ["--distill.name", "none", "--classifier.distill_weight", "0", "--labels.fraction", "0.4"]


def logged(run: Path, parts: int, *arguments: str) -> tuple[list[dict[str, Any]], str]:
    env = {**os.environ, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": str(parts)}
    command = [sys.executable, "train.py", *arguments, "--run.dir", str(run), "--optim.epochs", "1"]
    command += ["--optim.warmup_epochs", "0", "--stream.tasks", "2"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return log_of(run), done.stdout


def test_parts_add_up_to_the_step_of_the_whole_batch(tiny: list[str], tmp_path: Path) -> None:
    whole, printed = logged(tmp_path / "whole", 1, *tiny, *ADDITIVE)
    assert " parts" not in printed
    parts, printed = logged(tmp_path / "parts", 3, *tiny, *ADDITIVE)
    assert "global batch        90 images a step, 90 a process, in 3 parts" in printed
    assert [line["step"] for line in parts] == [line["step"] for line in whole]
    for step, (one, other) in enumerate(zip(whole, parts, strict=True)):
        assert other["loss/classifier"] == pytest.approx(one["loss/classifier"], rel=1e-5 if step < 2 else 1e-2)
    # Contrastive negatives come from the part alone: fewer of them, and a lower loss.
    assert parts[0]["loss/ssl"] < whole[0]["loss/ssl"] - 0.5


def test_parts_weigh_by_the_images_that_the_loss_counts() -> None:
    """A step of 22 new images and 5 of the memory in 4 parts: 6, 6, 5, 5 and 2, 1, 1, 1."""
    parts = [Batch(6, 2, 0), Batch(6, 1, 0), Batch(5, 1, 0), Batch(5, 1, 0)]
    whole = Batch.joined(parts)
    for name, counts in (("simclr", [8, 7, 6, 6]), ("deepclusterv2", [6, 6, 5, 5])):
        method = method_class(name)(settings_of(name))
        assert [method.counted(part) for part in parts] == counts
        assert method.counted(whole) == sum(counts)
