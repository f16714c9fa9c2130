"""Launching train.py in tests: one process, several under torchrun, or through a file of accelerate_configs."""

import os
import subprocess
import sys
from pathlib import Path

from accelerate.commands.launch import (
    _validate_launch_command,
    launch_command_parser,
    prepare_simple_launcher_cmd_env,
)

ROOT, HELPERS = Path(__file__).parents[2], Path(__file__).parent


def start(launcher: list[str], *command: str, **environment: str) -> "subprocess.Popen[str]":
    """Start a launch; `launcher` follows `python -m`, and is empty for a start without a launcher."""
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HELPERS), str(ROOT)]),
        "OMP_NUM_THREADS": "1",
        "KAIZEN_THREADS": "1",
        **environment,
    }
    line = [sys.executable, *(["-m", *launcher] if launcher else []), *command]
    return subprocess.Popen(line, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]", timeout: float = 800) -> str:
    """Wait for a launch, which must succeed; returns what it printed."""
    out, error = process.communicate(timeout=timeout)
    assert process.returncode == 0, out[-2000:] + error[-4000:]
    return out


def torchrun(processes: int) -> list[str]:
    return ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]


def configured(name: str, *options: str) -> list[str]:
    """accelerate launch with a file of accelerate_configs; port 0: a free one."""
    file = f"accelerate_configs/{name}.yaml"
    return ["accelerate.commands.launch", "--config_file", file, "--main_process_port", "0", *options]


def launched_with(*options: str) -> dict[str, str]:
    """What `accelerate launch OPTIONS` sets in the environment of one process."""
    given = _validate_launch_command(launch_command_parser().parse_args([*options, "train.py"]))[0]
    environment: dict[str, str] = prepare_simple_launcher_cmd_env(given)[1]
    return environment
