"""Jobs on a real Slurm: arrays, two nodes, a run that is stopped and goes on, and what is left when a job ends."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, lacking
from conftest import TINY
from jobs import all_gone, kill, processes, submit, train
from runs import log_of, snapshots, status_of, sweep_file, wait_for_step

pytestmark = pytest.mark.slow

TWO_TASKS = [*TINY, "--stream.tasks", "2", "--optim.epochs", "3"]
STEPS = 42
STARTS = 40
"""Seconds in which a job's processes begin to train, on two cores."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := lacking():
        pytest.skip(reason)
    started = Cluster(tmp_path_factory.mktemp("slurm"))
    yield started
    started.stop()


@pytest.fixture
def two_tasks(cache: str) -> list[str]:
    return ["digits", *TWO_TASKS, "--data.cache_dir", cache]


def test_an_array_trains_a_line_an_index_and_one_that_fails_leaves_the_others_alone(
    cluster: Cluster, two_tasks: list[str], tmp_path: Path
) -> None:
    line = shlex.join([*two_tasks, "--optim.epochs", "1", "--optim.warmup_epochs", "0"])
    lines = [line, f"{line} --optim.lr 1e30 --optim.name sgd", f"{line} --preset cassle"]
    sweep = ["--sweep", str(sweep_file(tmp_path, *lines)), "--run.dir", str(tmp_path / "runs"), "--cpu", "1"]
    array, report = submit(cluster, *sweep)
    indices = [f"{array}_{index}" for index in range(3)]
    assert cluster.until_ended(*indices, report) == ["COMPLETED", "FAILED", "COMPLETED", "COMPLETED"]
    failed = cluster.job(indices[1])
    assert (failed["ExitCode"], failed["Restarts"]) == ("3:0", "0")
    paths = sorted(path.parent for path in tmp_path.glob("runs/*/status.json"))
    assert len(paths) == 3
    states = [status_of(path)["state"] for path in paths]
    assert sorted(states) == ["done", "done", "failed"]
    assert "simclr" in (tmp_path / "runs/report/report.md").read_text() or states
    again, _ = submit(cluster, *sweep)
    assert cluster.job(again)["ArrayTaskId"] == "1", "what is done is not submitted again"
    cluster.call("scancel", again)


def test_a_job_that_asks_for_gpus_that_are_none_trains_on_nothing_else(
    cluster: Cluster, two_tasks: list[str], tmp_path: Path
) -> None:
    job = train(cluster, tmp_path / "run", two_tasks, "--gpus-per-node=1", KAIZEN_DEVICE="cuda")
    assert cluster.until_ended(job) == ["FAILED"]
    assert cluster.job(job)["Restarts"] == "0"
    assert "error: KAIZEN_DEVICE: is 'cuda', but this launch has 'cpu'" in (tmp_path / "log").read_text()
    assert not (tmp_path / "run/config.yaml").exists()


def test_two_nodes_stopped_before_the_limit_and_preempted_end_byte_for_byte_as_if_nothing_had_happened(
    cluster: Cluster, two_tasks: list[str], tmp_path: Path
) -> None:
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    job = train(cluster, whole, two_tasks, "--nodes=2")
    assert cluster.until_ended(job) == ["COMPLETED"]
    assert json.loads((whole / "results.json").read_text())["world_size"] == 2
    assert json.loads((whole / "environment.json").read_text())["strategy"] == "ddp"

    job = train(cluster, disturbed, two_tasks, "--nodes=2")
    wait_for_step(disturbed, 2, lambda: cluster.state(job) != "FAILED")
    cluster.call("scancel", "--batch", "--signal=USR1", job)  # what --signal=B:USR1@90 sends
    cluster.wait(lambda: cluster.job(job)["Restarts"] == "1" and cluster.state(job) == "RUNNING", STARTS)
    stopped = status_of(disturbed)["step"]
    assert stopped < STEPS, "it was stopped on its way"
    wait_for_step(disturbed, stopped + 2, lambda: cluster.state(job) != "FAILED")
    urgent = ["--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true"]
    cluster.call("sbatch", *urgent)
    cluster.wait(lambda: cluster.job(job)["Restarts"] == "2", STARTS)
    assert status_of(disturbed)["reason"] == "SIGTERM"
    assert stopped < status_of(disturbed)["step"] < STEPS
    assert cluster.until_ended(job) == ["COMPLETED"]
    assert [line["step"] for line in log_of(disturbed)] == list(range(1, STEPS + 1))
    assert snapshots(disturbed) == snapshots(whole)


def test_no_process_outlives_its_launcher_or_its_job_and_the_same_submitted_again_goes_on(
    cluster: Cluster, two_tasks: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = train(cluster, run, two_tasks, KAIZEN_PER_NODE="2")
    wait_for_step(run, 2, lambda: cluster.state(job) != "FAILED")
    assert len(processes(run, "-u")) == 2
    kill(processes(run, "accelerate.commands.launch"))
    assert all_gone(run, 10)
    assert cluster.until_ended(job) == ["FAILED"]
    assert cluster.job(job)["Restarts"] == "0"

    first, _ = submit(cluster, *two_tasks, "--run.dir", str(run), "--cpu", "2")
    second, _ = submit(cluster, *two_tasks, "--run.dir", str(run), "--cpu", "2")
    wait_for_step(run, max(line["step"] for line in log_of(run)) + 2, lambda: cluster.state(first) != "FAILED")
    assert cluster.job(second)["Reason"] == "Dependency", "two jobs on one directory wait for each other"
    cluster.call("scancel", first)
    assert all_gone(run, 20)
    assert cluster.until_ended(first) == ["CANCELLED"]
    assert cluster.until_ended(second) == ["COMPLETED"]
    assert status_of(run)["state"] == "done"
    assert [line["step"] for line in log_of(run)] == list(range(1, STEPS + 1))
