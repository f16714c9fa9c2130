"""The recipes of the digits learn: every method over five tasks, without collapse and with little forgetting."""

import json
import math
import os
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from launches import finish, start
from runs import log_of, sweep_file

from kaizen.model.methods import REGISTRY

FALLING = ("simclr", "supcon", "osiris", "barlow", "vicreg", "wmse", "lejepa", "supervised")
"""Methods whose loss shows learning; the loss of the rest follows a queue, a twin or assignments, which move."""
EVERY = bool(os.environ.get("KAIZEN_EVERY_RECIPE"))
TRAINED = tuple(REGISTRY) if EVERY else ("vicreg",)
"""The variable KAIZEN_EVERY_RECIPE=1 trains all of them."""
EACH = 8
"""Number of log lines compared at the start and end of task 0, as single steps vary."""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory, cache: str) -> Path:
    """A sweep of digits-METHOD, seed 0."""
    folder = tmp_path_factory.mktemp("recipes")
    recipes = ",".join(f"digits-{name}" for name in TRAINED)
    keys = f"--data.cache_dir {cache} --eval.readers classifier,knn --run.checkpoint_every 0 --log.every_steps 1"
    command = ["-m", "kaizen", "sweep", str(sweep_file(folder, f"{{{recipes}}} {keys}")), "--jobs", "2"]
    finish(start([], *command, "--run.dir", str(folder / "runs")), timeout=2400)
    return folder / "runs"


@pytest.mark.slow
@pytest.mark.timeout(2500)
@pytest.mark.parametrize("name", TRAINED)
def test_a_method_learns_the_digits(name: str, sweep: Path) -> None:
    (run,) = sweep.glob(f"digits-{name}-*")
    lines: list[dict[str, Any]] = log_of(run)
    assert {line["task"] for line in lines} == set(range(5))
    assert all(math.isfinite(value) for line in lines for value in line.values())
    last = {line["task"]: line for line in lines}
    spreads = [last[task]["projection_std"] for task in range(5)]
    assert min(spreads) > 0.3, f"collapsed: {spreads}"
    assert max(line["projection_std"] for line in lines) < 1.001
    if name in FALLING:
        first_task = [line["loss/ssl"] for line in lines if line["task"] == 0]
        assert fmean(first_task[-EACH:]) < fmean(first_task[:EACH])
    results = json.loads((run / "results.json").read_text())["readers"]
    # Not above the untrained network's: of images of 8 pixels, random features keep enough for neighbours, about 0.88.
    assert results["knn"]["final_accuracy"] > 0.8
    assert results["classifier"]["final_accuracy"] > 0.4, "20 points above what fine-tuning keeps"
