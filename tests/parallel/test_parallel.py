"""Two processes compared with one: one launch, many checks."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import TINY, Launcher
from hypothesis import given
from hypothesis import strategies as st
from launches import ROOT, finish, start, torchrun
from runs import COMBINED, snapshots, status_of, wait_for_step
from safetensors.numpy import load_file

from kaizen.model.methods import REGISTRY
from kaizen.parallel import Batch, shard


@given(st.integers(0, 300), st.integers(1, 64))
def test_shards_are_disjoint_complete_and_even(count: int, world: int) -> None:
    parts = [shard(count, rank, world) for rank in range(world)]
    assert [i for part in parts for i in part] == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(1, 60), st.integers(0, 20), st.integers(1, 16))
def test_shares_of_all_ranks_average_to_the_mean(current: int, replay: int, world: int) -> None:
    import torch

    values = torch.arange(current + replay, dtype=torch.float64)
    shares = []
    for rank in range(world):
        batch = Batch(current, replay, 0, rank, world)
        if rows := [*batch.slices(rank)[0], *batch.slices(rank)[1]]:
            shares.append(batch.share(values[rows].mean()))
    assert float(sum(shares)) / world == pytest.approx(float(values.mean()), rel=1e-12)


@pytest.fixture(scope="module")
def arguments(cache: str) -> list[str]:
    """A run with a batch of odd size, and a memory and an aligned classifier that one of the processes makes."""
    options = ["--stream.tasks", "3", "--optim.batch", "89", "--replay.policy", "herding"]
    options += ["--classifier.align", "statistics", "--classifier.align_steps", "30"]
    return ["digits", *TINY, *options, "--data.cache_dir", cache]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, arguments: list[str]) -> tuple[list[dict[str, Any]], Path]:
    """The results of two processes, and the directory of their run."""
    out = tmp_path_factory.mktemp("two")
    command = [
        str(ROOT / "tests" / "parallel" / "two_processes.py"),
        str(out),
        *arguments,
        "--run.dir",
        str(out / "run"),
    ]
    finish(start(torchrun(2), *command, ACCELERATE_USE_CPU="1"))
    return [json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(2)], out / "run"


def test_collectives(two: tuple[list[dict[str, Any]], Path]) -> None:
    for rank, found in enumerate(two[0]):
        assert found["rank"] == rank
        checks = {name: value for name, value in found.items() if isinstance(value, bool)}
        assert len(checks) == 17
        assert all(checks.values()), checks


@pytest.mark.parametrize("method", [*REGISTRY, *COMBINED])
def test_uneven_slices_and_labels_give_the_losses_gradients_and_queues_of_one_process(
    method: str, two: tuple[list[dict[str, Any]], Path]
) -> None:
    limits = {"first": 1e-9, "float32 terms": 1e-5, "float32 gradient": 1e-4}
    for found in two[0]:
        assert len(found["methods"][method]) == 7
        for part, gap in found["methods"][method].items():
            limit = next((most for name, most in limits.items() if part.startswith(name)), 1e-6)
            assert gap < limit, (part, gap)


def test_two_processes_train_the_digits_to_the_end(two: tuple[list[dict[str, Any]], Path]) -> None:
    found, run = two
    assert [rank["exit code"] for rank in found] == [0, 0]
    results = json.loads((run / "results.json").read_text())
    assert results["world_size"] == 2
    assert len(results["readers"]["classifier"]["matrix"]) == 3
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1)), "one process writes the log"
    memory = load_file(run / "tasks" / "task-02" / "replay.safetensors")
    assert len(memory["labels"]) == 40


def test_mixed_images_and_stored_logits_give_the_terms_and_gradients_of_one_process(
    two: tuple[list[dict[str, Any]], Path],
) -> None:
    for found in two[0]:
        for name in ("mixed", "stored"):
            assert len(found[name]) == 2
            assert max(found[name]) < 1e-9, (name, found[name])
            ssl, distill, classifier, classifier_distill = found[f"{name} terms"]
            assert min(ssl, distill, classifier) > 0
            assert (classifier_distill > 0) == (name == "stored")


def test_two_processes_that_were_stopped_resume_byte_for_byte(
    two: tuple[list[dict[str, Any]], Path], arguments: list[str], launcher: Launcher, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = [*arguments, "--run.dir", str(run)]
    processes = launcher.start_several(2, arguments)
    wait_for_step(run, 8, processes[0].is_alive)
    (run / "stop").touch()
    for process in processes:
        process.join(120)
        assert process.exitcode == 75
    status = status_of(run)
    assert (status["state"], status["exit_code"]) == ("stopped", 75)
    assert 8 <= status["step"] < 18
    assert not (run / "stop").exists()
    assert launcher.run_several(2, arguments) == [0, 0]
    assert snapshots(run) == snapshots(two[1])
