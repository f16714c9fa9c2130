"""Submitting jobs in tests as a user does, with launch/submit, and inspecting their processes."""

import os
import re
import signal
import sys
import time
from pathlib import Path

from cluster import Cluster
from runs import log_of, wait_for_step

SETUP = f"export PATH={Path(sys.executable).parent}:$PATH OMP_NUM_THREADS=1"


def submit(cluster: Cluster, *words: str) -> list[str]:
    """Run launch/submit; returns the numbers of the jobs: that of the runs, then that of the report."""
    command = (sys.executable, "launch/submit", "--cores", "1", "--time", "10", "--setup", SETUP, *words)
    return re.findall(r"^job (\d+)$", cluster.call(*command), re.MULTILINE)


def wait_for(run: Path, step: int) -> None:
    """Wait until a run has logged a step."""
    wait_for_step(run, step, lambda: True)
    assert last_step(run) >= step


def last_step(run: Path) -> int:
    return int(log_of(run)[-1]["step"])


def processes(run: Path, what: str) -> list[int]:
    """Processes of a run with such a word in their command line: `launch` for launchers, `-u` for training."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if str(run) in words and any(word.startswith(what) for word in words):
            found.append(int(folder.name))
    return found


def all_ended(numbers: list[int], seconds: float) -> bool:
    """Whether all these processes, at least one, end in this time."""
    assert numbers
    deadline = time.monotonic() + seconds
    while (left := [number for number in numbers if _lives(number)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not left


def _lives(number: int) -> bool:
    try:
        return (Path("/proc") / str(number) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(numbers: list[int]) -> None:
    assert numbers, "no process found"
    for number in numbers:
        os.kill(number, signal.SIGKILL)


def train(cluster: Cluster, run: Path, words: list[str], *options: str, **environment: str) -> str:
    """Number of a job of launch/train.sbatch without a report, on CPUs unless the environment sets a device."""
    options = ("--parsable", "--cpus-per-task=1", f"--output={run.parent / 'log'}", *options)
    environment = {"KAIZEN_SETUP": SETUP, "KAIZEN_DEVICE": "cpu", **environment}
    return cluster.call("sbatch", *options, "launch/train.sbatch", str(run), *words, **environment).strip()
