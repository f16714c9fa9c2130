"""The same curve on one, two and four processes: real steps, with views, twin, teacher, distillers and memory."""

import json
from pathlib import Path

import pytest
from launches import finish, start, torchrun

SCRIPT = str(Path(__file__).parent / "curves.py")
FEW = ["simclr", "mocov2plus", "vicreg", "swav", "deepclusterv2", "dino", "osiris", "mocov2plus, pnr"]
"""One per kind of communication: rows, queue, covariances, assignments, clusters, centre, rows in two sets, queues."""
MEMORY = {2: ["lump", "stored_logits"]}
"""Uses of the memory that are not replay alone."""

Curves = dict[str, list[dict[str, float]]]


def curves(out: Path, cache: str, world: int, methods: list[str], parts: int = 1) -> Curves:
    out = out / str(parts)
    out.mkdir(exist_ok=True)
    settings = {"ACCELERATE_USE_CPU": "1", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": str(parts)}
    launcher = torchrun(world) if world > 1 else []
    finish(start(launcher, SCRIPT, str(out), cache, *methods, **settings))
    return json.loads((out / f"world-{world}.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("worlds", "parts"), [({2: FEW, 4: FEW[:2]}, 1), ({2: FEW[:3]}, 2), (MEMORY, 1), (MEMORY, 2)])
def test_the_curve_of_a_run_does_not_depend_on_the_number_of_processes(
    worlds: dict[int, list[str]], parts: int, tmp_path: Path, cache: str
) -> None:
    one = curves(tmp_path, cache, 1, worlds[2], parts)
    for world, methods in worlds.items():
        for method, found in curves(tmp_path, cache, world, methods, parts).items():
            assert len(found) == len(one[method]) == 14
            for step, (terms, expected) in enumerate(zip(found, one[method], strict=True)):
                assert terms == pytest.approx(expected, rel=1e-6, abs=1e-6), (world, method, step)
            silent = {"distill"} if method == "osiris" else set()
            assert all(value for term, value in found[-1].items() if term not in silent), "all four terms take part"
