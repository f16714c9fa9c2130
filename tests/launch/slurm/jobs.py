"""Submitting jobs in tests as a user does, with launch/submit, and looking at their processes."""

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
    """Numbers of the jobs that a line of launch/submit gives to Slurm: the runs', then the report's."""
    command = (sys.executable, "launch/submit", "--cores", "1", "--time", "10", "--setup", SETUP, *words)
    return re.findall(r"^job (\d+)$", cluster.call(*command), re.MULTILINE)


def wait_for(run: Path, step: int) -> None:
    """Until a run has logged a step."""
    wait_for_step(run, step, lambda: True)
    assert last_step(run) >= step


def last_step(run: Path) -> int:
    return int(log_of(run)[-1]["step"])


def processes(run: Path, what: str) -> list[int]:
    """Processes of a run whose command line has that word: `launch` are launchers, `-u` those that train."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if str(run) in words and any(word.startswith(what) for word in words):
            found.append(int(folder.name))
    return found


def all_gone(numbers: list[int], seconds: float) -> bool:
    """Whether these processes, of which there are some, are all gone by then."""
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
    assert numbers, "there is no such process"
    for number in numbers:
        os.kill(number, signal.SIGKILL)


def train(cluster: Cluster, run: Path, words: list[str], *options: str, **environment: str) -> str:
    """Number of a job of launch/train.sbatch alone, on CPUs unless the environment says otherwise."""
    options = ("--parsable", "--cpus-per-task=1", f"--output={run.parent / 'log'}", *options)
    environment = {"KAIZEN_SETUP": SETUP, "KAIZEN_DEVICE": "cpu", **environment}
    return cluster.call("sbatch", *options, "launch/train.sbatch", str(run), *words, **environment).strip()
