"""Submitting jobs in tests as a user does, with launch/submit, and looking at their processes."""

import os
import re
import signal
import sys
import time
from pathlib import Path

from cluster import Cluster

SETUP = f"export PATH={Path(sys.executable).parent}:$PATH OMP_NUM_THREADS=1"


def submit(cluster: Cluster, *words: str) -> list[str]:
    """Numbers of the jobs that a line of launch/submit gives to Slurm: the runs', then the report's."""
    command = (sys.executable, "launch/submit", "--cores", "1", "--time", "10", "--setup", SETUP, *words)
    return re.findall(r"^job (\d+)$", cluster.call(*command), re.MULTILINE)


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


def all_gone(run: Path, seconds: float) -> bool:
    """Whether every process of a run is gone by then."""
    deadline = time.monotonic() + seconds
    while processes(run, "") and time.monotonic() < deadline:
        time.sleep(0.1)
    return not processes(run, "")


def kill(numbers: list[int]) -> None:
    assert numbers, "there is no such process"
    for number in numbers:
        os.kill(number, signal.SIGKILL)


def train(cluster: Cluster, run: Path, words: list[str], *options: str, **environment: str) -> str:
    """Number of a job of launch/train.sbatch alone, on CPUs unless the environment says otherwise."""
    options = ("--parsable", "--cpus-per-task=1", f"--output={run.parent / 'log'}", *options)
    environment = {"KAIZEN_SETUP": SETUP, "KAIZEN_DEVICE": "cpu", **environment}
    return cluster.call("sbatch", *options, "launch/train.sbatch", str(run), *words, **environment).strip()
