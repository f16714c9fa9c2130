"""Jobs on a real Slurm: arrays, two nodes, a run that is stopped and resumed, and processes after a job's end."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, lacking
from conftest import TINY
from jobs import all_ended, kill, last_step, processes, submit, train, wait_for
from runs import log_of, snapshots, status_of, sweep_file

pytestmark = pytest.mark.slow

TWO_TASKS = [*TINY, "--stream.tasks", "2", "--optim.epochs", "3"]
STARTS = 40
"""Seconds until a job's processes train, on two cores."""


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


def test_an_array_trains_one_line_per_index_and_one_failure_does_not_stop_the_rest(
    cluster: Cluster, two_tasks: list[str], tmp_path: Path
) -> None:
    line = shlex.join([*two_tasks, "--optim.epochs", "1", "--optim.warmup_epochs", "0"])
    lines = [line, f"{line} --optim.lr 1e30 --optim.name sgd", f"{line} --preset cassle"]
    sweep = ["--sweep", str(sweep_file(tmp_path, *lines)), "--run.dir", str(tmp_path / "runs"), "--cpu", "1"]
    array, report = submit(cluster, *sweep)
    indices = [f"{array}_{index}" for index in range(3)]
    again, _ = submit(cluster, *sweep)
    # Two jobs on one directory wait for each other; a busy controller tells so only after a while.
    cluster.wait(lambda: cluster.job(again)["Reason"] == "Dependency", STARTS)
    cluster.call("scancel", again)
    assert cluster.until_ended(*indices, report) == ["COMPLETED", "FAILED", "COMPLETED", "COMPLETED"]
    failed = cluster.job(indices[1])
    assert (failed["ExitCode"], failed["Restarts"]) == ("3:0", "0")
    states = [status_of(path.parent)["state"] for path in tmp_path.glob("runs/*/status.json")]
    assert sorted(states) == ["done", "done", "failed"]
    table = (tmp_path / "runs/report/report.md").read_text()
    assert "| digits-cassle " in table


def test_a_job_that_asks_for_missing_gpus_does_not_train_on_the_cpu(
    cluster: Cluster, two_tasks: list[str], tmp_path: Path
) -> None:
    job = train(cluster, tmp_path / "run", two_tasks, "--gpus-per-node=1", KAIZEN_DEVICE="cuda")
    assert cluster.until_ended(job) == ["FAILED"]
    assert cluster.job(job)["Restarts"] == "0"
    assert "error: KAIZEN_DEVICE: is 'cuda', but this launch has 'cpu'" in (tmp_path / "log").read_text()
    assert not (tmp_path / "run/config.yaml").exists()


def test_two_nodes_stopped_before_the_limit_and_preempted_end_with_the_same_bytes(
    cluster: Cluster, two_tasks: list[str], tmp_path: Path
) -> None:
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    job = train(cluster, whole, two_tasks, "--nodes=2")
    assert cluster.until_ended(job) == ["COMPLETED"]
    assert json.loads((whole / "results.json").read_text())["world_size"] == 2
    assert json.loads((whole / "environment.json").read_text())["strategy"] == "ddp"

    job = train(cluster, disturbed, two_tasks, "--nodes=2")
    wait_for(disturbed, 2)
    started = processes(disturbed, "")
    cluster.call("scancel", "--batch", "--signal=USR1", job)  # what --signal=B:USR1@90 sends
    cluster.wait(lambda: cluster.job(job)["Restarts"] == "1" and cluster.state(job) == "RUNNING", STARTS)
    assert all_ended(started, 1)
    first = status_of(disturbed)["step"]
    wait_for(disturbed, first + 2)
    urgent = ["--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true"]
    cluster.call("sbatch", *urgent)
    cluster.wait(lambda: cluster.job(job)["Restarts"] == "2", STARTS)
    second = status_of(disturbed)
    assert second["reason"] == "SIGTERM"
    assert cluster.until_ended(job) == ["COMPLETED"]
    assert 2 <= first < second["step"] < last_step(whole), "it was stopped before its end"
    assert [line["step"] for line in log_of(disturbed)] == [line["step"] for line in log_of(whole)]
    assert snapshots(disturbed) == snapshots(whole)


def test_no_process_outlives_its_launcher_or_its_job_and_the_same_job_resumes(
    cluster: Cluster, two_tasks: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = train(cluster, run, two_tasks, KAIZEN_PER_NODE="2")
    wait_for(run, 2)
    workers = processes(run, "-u")
    assert len(workers) == 2
    kill(processes(run, "accelerate.commands.launch"))
    assert all_ended(workers, 5)
    assert cluster.until_ended(job) == ["FAILED"]
    assert cluster.job(job)["Restarts"] == "0"

    single = ["--job-name=one", "--dependency=singleton"]
    first, second = (train(cluster, run, two_tasks, *single, KAIZEN_PER_NODE="2") for _ in range(2))
    wait_for(run, last_step(run) + 2)
    started = processes(run, "")
    cluster.call("scancel", first)
    assert all_ended(started, 20)
    assert cluster.until_ended(first, second) == ["CANCELLED", "COMPLETED"]
    assert cluster.job(first)["Restarts"] == "0"
    assert status_of(run)["state"] == "done"
    steps = [line["step"] for line in log_of(run)]
    assert steps == list(range(1, len(steps) + 1))
