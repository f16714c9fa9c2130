"""The batch files, with short scripts instead of Slurm's programs and python: what a job does when its run ends."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from launches import ROOT

PROGRAMS = {
    # Skips the options of srun, then runs the command.
    "srun": 'while [[ $1 != bash ]]; do shift; done\nSLURM_PROCID=0 exec "$@"',
    "scontrol": """case $1-$2 in
    show-hostnames) printf 'n7\\nn8\\n' ;;
    show-node) [[ $4 == n7 ]] && echo "NodeName=n7 NodeAddr=10.0.0.7 NodeHostName=n7 Port=6818" ;;
    requeue-*) echo "$2" >>"$SAID/requeued" ;;
esac""",
    "squeue": """case $* in
    *--states=COMPLETING*) [[ ! -e $SAID/ending ]] || { rm "$SAID/ending"; echo 4; touch "$SAID/waited"; } ;;
    *) cat "$SAID/state" ;;
esac""",
    "sleep": "exec /bin/sleep 0.05",
}


@dataclass
class Job:
    """A job of launch/train.sbatch; `run` is bash code that replaces the training, with $run as its directory."""

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    state: str = "RUNNING"
    setup: str = ""

    def __post_init__(self) -> None:
        (self.folder / "bin").mkdir()
        for name, text in PROGRAMS.items():
            (self.folder / "bin" / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
            (self.folder / "bin" / name).chmod(0o755)
        self.run_directory = self.folder / "run"

    def start(self, run: str) -> "subprocess.Popen[str]":
        (self.folder / "state").write_text(self.state)
        (self.folder / "training").write_text(f"set -e\nrun={self.run_directory}\n{STATUS}\n{run}")
        setup = f'{self.setup}python() {{ echo "$*" >{self.folder}/command; bash {self.folder}/training; }}'
        slurm = {
            "SLURM_JOB_ID": "31",
            "SLURM_JOB_NAME": "x",
            "SLURM_JOB_NODELIST": "n[7-8]",
            "SLURM_JOB_NUM_NODES": "2",
        }
        slurm |= {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_GPUS_ON_NODE": "4", "KAIZEN_SETUP": setup}
        path = f"{self.folder}/bin:/usr/bin:/bin"
        return subprocess.Popen(
            ["bash", "launch/train.sbatch", str(self.run_directory), "digits", "--log.name", "a b"],
            cwd=ROOT,
            env={"PATH": path, "SAID": str(self.folder), **slurm, **self.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, run: str, number: signal.Signals | None = None) -> int:
        """Exit code of a job; the signal reaches its script once the training has begun."""
        (self.folder / "began").unlink(missing_ok=True)
        process = self.start(f"touch {self.folder}/began\n{run}")
        if number:
            wait(lambda: (self.folder / "began").exists())
            os.kill(process.pid, number)
        self.said, self.error = process.communicate(timeout=20)
        return process.returncode

    @property
    def requeued(self) -> list[str]:
        file = self.folder / "requeued"
        return file.read_text().split() if file.exists() else []


STATUS = r"""status() {
    printf '{\n "state": "%s",\n "exit_code": %s,\n "step": 7,\n "reason": "%s"\n}\n' "$@" >"$run/s"
    mv "$run/s" "$run/status.json"
}"""
UNTIL_STOPPED = 'until [[ -e $run/stop ]]; do /bin/sleep 0.05; done\nstatus stopped 75 "file $run/stop"\nexit 1'


def wait(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_every_node_starts_its_processes_and_they_meet_at_the_first_node(job: Job) -> None:
    assert job.end("env >$SAID/env; status done 0 null") == 0
    command = (job.folder / "command").read_text()
    for said in ("--num_machines 2", "--num_processes 8", "--machine_rank 0", "--main_process_ip 10.0.0.7"):
        assert said in command
    assert command.endswith(f"-m kaizen.commands.train digits --log.name a b --run.dir {job.run_directory}\n")
    environment = (job.folder / "env").read_text().splitlines()
    assert {"KAIZEN_PROCESSES=8", "KAIZEN_DEVICE=cuda", "HF_HUB_OFFLINE=1"} <= set(environment)
    assert "ACCELERATE_USE_CPU=1" not in environment
    assert "--mixed_precision" not in command


def test_a_precision_set_before_the_job_goes_above_that_of_the_file(job: Job) -> None:
    job.environment["ACCELERATE_MIXED_PRECISION"] = "bf16"
    assert job.end("status done 0 null") == 0
    assert "--mixed_precision bf16 -m kaizen.commands.train" in (job.folder / "command").read_text()


def test_the_setup_may_use_variables_that_are_not_set(job: Job) -> None:
    job.setup = 'NAME="${NOT_SET}set"; '
    assert job.end("status done 0 null") == 0


def test_without_gpus_nothing_is_started_unless_the_cpu_is_asked_for(job: Job) -> None:
    job.environment = {"SLURM_GPUS_ON_NODE": ""}
    assert job.end("status done 0 null") == 2
    assert "error: SLURM_GPUS_ON_NODE: is 0; allowed: " in job.error
    assert not (job.folder / "command").exists()
    job.environment = {"KAIZEN_DEVICE": "tpu"}
    assert job.end("status done 0 null") == 2
    job.environment = {"KAIZEN_DEVICE": "cpu", "KAIZEN_PER_NODE": "3"}
    assert job.end("env >$SAID/env; status done 0 null") == 0
    assert {"KAIZEN_PROCESSES=6", "ACCELERATE_USE_CPU=1"} <= set((job.folder / "env").read_text().splitlines())


@pytest.mark.parametrize(
    ("run", "code"),
    [
        ("status failed 3 'loss is nan'; exit 1", 3),
        ("status failed 2 'run.dir'; exit 1", 2),
        ("exit 1", 1),  # before it had a directory
        ("status running null null; kill -9 $$", 137),
        ("status running null null; exit 0", 3),
    ],
)
def test_a_run_that_fails_is_not_requeued(run: str, code: int, job: Job) -> None:
    assert job.end(run) == code
    assert job.requeued == []


def test_a_run_that_fails_after_a_signal_is_not_requeued(job: Job) -> None:
    assert job.end("until [[ -e $run/stop ]]; do :; done\nstatus failed 3 nan; exit 1", signal.SIGUSR1) == 3
    assert job.requeued == []


def test_a_status_from_an_earlier_start_does_not_count(job: Job) -> None:
    job.run_directory.mkdir()
    for state, reason in (("stopped", "SIGTERM"), ("done", "null")):
        (job.run_directory / "status.json").write_text(json.dumps({"state": state, "reason": reason}, indent=1))
        assert job.end("exit 1") == 1
        assert job.requeued == []


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_at_a_signal_the_run_saves_and_is_requeued(number: signal.Signals, job: Job) -> None:
    assert job.end(UNTIL_STOPPED, number) == 75
    assert job.requeued == ["31"]
    assert "job 31: stopped at step 7, back in the queue" in job.said
    assert not (job.run_directory / "stop").exists()


def test_a_signal_during_the_setup_is_not_lost(job: Job) -> None:
    job.setup = "touch $SAID/began; /bin/sleep 0.5; "
    assert job.end("exit 1", signal.SIGUSR1) == 75
    assert job.requeued == ["31"]
    assert not (job.folder / "command").exists(), "nothing was started"


def test_one_index_of_an_array_is_requeued_without_the_rest(job: Job) -> None:
    job.environment = {"SLURM_ARRAY_JOB_ID": "30", "SLURM_ARRAY_TASK_ID": "5"}
    assert job.end(UNTIL_STOPPED, signal.SIGUSR1) == 75
    assert job.requeued == ["30_5"]


def test_a_preemption_that_only_the_processes_received_counts_too(job: Job) -> None:
    assert job.end("status stopped 75 SIGTERM; exit 1") == 75
    assert job.requeued == ["31"]


def test_a_run_stopped_by_its_user_and_a_cancelled_job_are_not_requeued(job: Job) -> None:
    assert job.end("status stopped 75 'file run/stop'; exit 1") == 75
    job.state = "COMPLETING"
    assert job.end(UNTIL_STOPPED, signal.SIGTERM) == 75
    assert job.requeued == []


def test_it_waits_for_the_processes_of_the_job_before_it(job: Job) -> None:
    (job.folder / "ending").touch()
    assert job.end("[[ -e $SAID/waited ]] && status done 0 null") == 0


def test_a_preemption_while_the_processes_start_counts_too(job: Job) -> None:
    """The processes have written no status yet, but Slurm also signals the script of each node, which leaves a file."""
    assert job.end("kill -TERM $(ps -o ppid= -p $PPID); /bin/sleep 0.2; exit 1") == 75
    assert job.requeued == ["31"]
    assert not (job.run_directory / ".preempted").exists()
    assert job.end("exit 1") == 1, "the preemption of an earlier start does not count"


def test_a_run_without_progress_is_not_requeued_forever(job: Job) -> None:
    stopped = "status stopped 75 SIGTERM; exit 1"
    assert job.end(stopped) == 75
    job.environment = {"SLURM_RESTART_COUNT": "9"}
    assert job.end(stopped) == 75
    job.environment = {"SLURM_RESTART_COUNT": "10"}
    assert job.end(f"touch $run/results.json; {stopped}") == 75, "a task was evaluated"
    assert job.requeued == ["31"] * 3
    assert job.end(stopped) == 3
    assert "without progress; allowed: a longer --time" in job.error
    assert job.requeued == ["31"] * 3
