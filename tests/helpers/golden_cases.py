"""Expected values of tests/golden: inputs are drawn as described under `how` in the file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

FOLDER = Path(__file__).parent.parent / "golden"
SCHEDULES: dict[str, Any] = json.loads((FOLDER / "schedules.json").read_text())
CASES: list[dict[str, Any]] = json.loads((FOLDER / "losses.json").read_text())["cases"]


def cases(*functions: str) -> list[dict[str, Any]]:
    """The cases of these functions; each function must have one."""
    found = [case for case in CASES if case["function"] in functions]
    assert {case["function"] for case in found} == set(functions)
    return found


def drawn(case: dict[str, Any], dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Leaves as drawn, and the arguments of the function: the leaves after `prepare`, and drawn integers."""
    rng = np.random.RandomState(case["seed"])
    leaves = {
        name: torch.from_numpy(rng.randn(*shape).astype(np.float32)).to(dtype).requires_grad_()
        for name, shape in case["draws"]
    }
    given: dict[str, Tensor] = {
        name: torch.from_numpy(rng.randint(0, high, shape)) for name, high, shape in case["ints"]
    }
    for name, leaf in leaves.items():
        how = case["prepare"].get(name, "as drawn")
        if how == "l2 rows":
            given[name] = F.normalize(leaf, dim=1)
        elif how.startswith("drawn (D, K)"):
            given[name] = F.normalize(leaf, dim=0).t()
        elif how.startswith("times "):
            given[name] = leaf * float(how.removeprefix("times "))
        else:
            assert how == "as drawn", how
            given[name] = leaf
    return leaves, given
