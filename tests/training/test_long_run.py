"""A long run: nothing grows with its steps and tasks except what it must keep."""

import os
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY

import kaizen.training.trainer
from kaizen.commands.train import main


def memory() -> int:
    """Private bytes of this process, without mapped files, which the system can reclaim."""
    fields = Path("/proc/self/smaps_rollup").read_text().split()
    return int(fields[fields.index("Anonymous:") + 1]) * 1024


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_steps_over_twenty_tasks(cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    arguments = ["digits", *TINY, "--stream.kind", "data", "--stream.tasks", "20", "--encoder.width", "2"]
    arguments += [
        "--optim.batch",
        "14",
        "--optim.epochs",
        "10",
        "--optim.lr",
        "0.1",
        "--replay.batch",
        "4",
        "--replay.per_class",
        "2",
    ]
    arguments += ["--run.checkpoint_every", "10", "--log.every_steps", "50", "--data.cache_dir", cache]
    arguments += ["--eval.readers", "[classifier,linear_probe_seen,linear_probe_all,knn]", "--run.dir", str(run)]
    found: list[tuple[int, int, int]] = []

    class Watched(kaizen.training.trainer.Trainer):
        def evaluate(self, task: int, *args: Any) -> None:
            super().evaluate(task, *args)
            found.append((memory(), len(os.listdir("/proc/self/fd")), len(list(run.glob("checkpoints/*")))))

    monkeypatch.setattr(kaizen.training.trainer, "Trainer", Watched)
    assert main(arguments) == 0
    found = found[1:]  # the first evaluation is of the untrained network
    assert len(found) == 20
    assert len(list((run / "tasks").iterdir())) == 20
    steps = len((run / "log.jsonl").read_text().splitlines()) * 50
    assert steps >= 1000
    (early, _, _), (late, _, _) = found[2], found[-1]
    assert late - early < max(0.05 * early, 20 * 2**20), f"{early / 2**20:.1f} MB became {late / 2**20:.1f} MB"
    assert len({files for _, files, _ in found[1:]}) == 1, "open files are constant"
    assert max(kept for _, _, kept in found) <= 2
