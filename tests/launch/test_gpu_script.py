"""The script for machines with a GPU runs to its end without one, and reports what it left out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: run .ci/gpu itself")
def test_the_script_runs_without_a_gpu(tmp_path: Path) -> None:
    parts = ["whole", "moco-compiled", "tests-views"]
    env = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path), "REPETITIONS": "1"}
    command = ["bash", ".ci/gpu", *parts]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "no GPU: tests are skipped" in done.stdout
    lines = (tmp_path / "table.txt").read_text().splitlines()
    assert {line.split()[0] for line in lines} == set(parts)
    assert all(line.split()[1] == "passed" for line in lines), done.stdout[-3000:]
    assert any("left out: compiled networks" in line for line in lines)
    numbers = json.loads((tmp_path / "gpu.json").read_text())
    assert numbers["whole"]["hours"] > 0
    assert numbers["tests-views"]["state"] == "passed"
    assert "skipped" in (tmp_path / "logs.txt").read_text()
    wrong = subprocess.run(["bash", ".ci/gpu", "nosuch"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2
    assert "no part is named nosuch; allowed: moco" in wrong.stderr
