"""Whole runs on a GPU: killed and resumed, over many tasks, sharded, in one process of a distributed launch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import log_of, run_of, snapshots, status_of

from kaizen.commands.train import main
from kaizen.training.step import Stepper
from kaizen.training.trainer import Trainer

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("accelerate_anew")]

ROOT = Path(__file__).parent.parent.parent


def test_a_killed_run_resumes_to_the_same_bytes(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With run.deterministic and recorded steps; epochs enough to record some before and after."""
    tiny = [*tiny, "--run.deterministic", "true", "--stream.tasks", "2", "--optim.epochs", "6", "--method.name", "byol"]
    assert main([*tiny, "--run.dir", str(tmp_path / "whole")]) == 0
    step, calls = Stepper.step, 0

    def dies(self: Stepper, number: int) -> Any:
        nonlocal calls
        calls += 1
        if calls == 50:
            raise RuntimeError("the power is gone")
        return step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", dies)
        assert main(tiny) == 3
    assert main(tiny) == 0
    assert snapshots(run_of(tiny)) == snapshots(tmp_path / "whole")
    lines, others = log_of(run_of(tiny)), log_of(tmp_path / "whole")
    assert [line["loss/total"] for line in lines] == [line["loss/total"] for line in others]


def test_memory_stays_flat_over_twenty_tasks(tiny: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    train = Trainer.train_task

    def watched(self: Trainer, task: int, checkpoint: Any) -> None:
        train(self, task, checkpoint)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        held.append(torch.cuda.memory_reserved())

    monkeypatch.setattr(Trainer, "train_task", watched)
    tiny = [
        *tiny,
        "--stream.kind",
        "data",
        "--stream.tasks",
        "20",
        "--optim.batch",
        "12",
        "--run.checkpoint_every",
        "0",
    ]
    assert main([*tiny, "--run.graph", "must", "--method.name", "byol", "--log.every_steps", "10"]) == 0
    assert len(held) == 20
    # The first task has no teacher; segments of the allocator come and go by 2 MiB.
    assert max(held[1:]) - min(held[1:]) <= 8 * 2**20, f"bytes after each task: {held}"


TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def launched(arguments: list[str], launcher: list[str], **env: str) -> str:
    around = {**os.environ, "KAIZEN_THREADS": "2", **env}
    command = [sys.executable, *launcher, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=around, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


def test_the_only_process_of_a_launch_with_nccl_records_its_steps(tiny: list[str]) -> None:
    arguments = [*tiny, "--run.graph", "must", "--stream.tasks", "2"]
    said = launched(arguments, [*TORCHRUN, "1", "train.py"], ACCELERATE_MIXED_PRECISION="bf16")
    assert "processes           1" in said
    assert status_of(run_of(tiny))["state"] == "done"


def test_fsdp2_trains_one_shard_and_resumes(tiny: list[str]) -> None:
    del tiny[(width := tiny.index("--encoder.width")) : width + 2]
    arguments = [*tiny, "--encoder.name", "vit_tiny", "--method.name", "byol", "--stream.tasks", "2"]
    config = ["--config_file", "accelerate_configs/fsdp2.yaml", "--num_processes", "1"]
    accelerate = ["-m", "accelerate.commands.launch", *config, "train.py"]
    said = launched(arguments, accelerate)
    assert "not recorded as a CUDA graph: FSDP" in said
    run = run_of(tiny)
    assert json.loads((run / "environment.json").read_text())["strategy"] == "fsdp2"
    # The end of the last task goes, its checkpoint stays: the run goes on from there.
    for file in (run / "tasks" / "task-01").iterdir():
        file.unlink()
    (run / "tasks" / "task-01").rmdir()
    before = len(log_of(run))
    launched(arguments, accelerate)
    assert status_of(run)["state"] == "done"
    assert len(log_of(run)) == before


def test_two_processes_train_on_one_gpu_over_gloo(tiny: list[str]) -> None:
    said = launched(
        [*tiny, "--stream.tasks", "2"],
        [*TORCHRUN, "2", str(Path(__file__).parent / "shared_gpu.py")],
        ACCELERATE_TORCH_DEVICE="cuda:0",
        ACCELERATE_BYPASS_DEVICE_MAP="true",
    )
    assert "processes           2" in said
    assert "not recorded as a CUDA graph: 2 processes" in said
    assert all(line["loss/total"] == line["loss/total"] for line in log_of(run_of(tiny)))


def test_compiled_networks_are_recorded_with_the_step(tiny: list[str], tmp_path: Path) -> None:
    runs = []
    for backend in ("no", "inductor"):
        run = tmp_path / backend
        # Maps of one pixel have a layout that inductor of torch 2.11 guesses wrongly, so images are larger here.
        arguments = [*tiny, "--data.image_size", "16", "--stream.tasks", "2", "--run.graph", "must"]
        arguments += ["--run.dir", str(run)]
        launched(arguments, ["train.py"], ACCELERATE_DYNAMO_BACKEND=backend)
        runs.append(log_of(run))
    for one, other in zip(*runs, strict=True):
        assert other["loss/total"] == pytest.approx(one["loss/total"], rel=0.05)
