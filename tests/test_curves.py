"""The same curve on one, two and four processes: real steps, with views, twin, teacher, distillers and memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kaizen.methods import REGISTRY

SCRIPT = str(Path(__file__).parent / "curves.py")
FEW = ["simclr", "mocov2plus", "vicreg", "swav", "deepclusterv2", "dino"]
"""One of each kind of need: gathered rows, queue, covariances, assignments, clusters, centre."""

Curves = dict[str, list[dict[str, float]]]


def curves(out: Path, cache: str, world: int, methods: list[str]) -> Curves:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(world)] if world > 1 else []
    env = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "KAIZEN_THREADS": "1"}
    command = [sys.executable, *launcher, SCRIPT, str(out), cache, *methods]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((out / f"world-{world}.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_curve_of_a_run_does_not_depend_on_the_number_of_processes(tmp_path: Path, cache: str) -> None:
    one = curves(tmp_path, cache, 1, list(REGISTRY))
    for world, methods in ((2, list(REGISTRY)), (4, FEW)):
        for method, found in curves(tmp_path, cache, world, methods).items():
            assert len(found) == len(one[method]) == 20
            for step, (terms, expected) in enumerate(zip(found, one[method], strict=True)):
                assert terms == pytest.approx(expected, rel=1e-6, abs=1e-6), (world, method, step)
            assert min(found[-1].values()) != 0, "all four terms take part"
