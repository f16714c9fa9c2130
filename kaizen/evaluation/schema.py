"""Reads results.json (schema 2; schema 1 is converted) and environment.json of a run."""

import json
from pathlib import Path
from typing import Any

from kaizen.evaluation.metrics import DEFINITIONS, PROTOCOLS, cannot_name, summarize
from kaizen.run.environment import read_environment

SCHEMA = 2
DAMAGED = (OSError, ValueError, LookupError, ArithmeticError, TypeError, AttributeError)
"""Exceptions for a results.json that cannot be read or is invalid."""
SETTINGS = {"mixed_precision": "no", "gradient_accumulation_steps": "1"}
"""Settings of a launch that affect the result of training, and their usual values."""


def read_results(file: Path) -> dict[str, Any]:
    """The content of a results.json, converted to schema 2; metrics of later versions are computed from its rows.

    Raises:
        DAMAGED: the file cannot be read, or is not a results.json.
    """
    held: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    schema = held.get("schema", 1)
    if schema not in (1, SCHEMA):
        raise ValueError(f"schema is {schema!r}; allowed: 1, {SCHEMA}")
    held = _converted(held) if schema == 1 else held
    for reader in held["readers"].values():
        if lacking := DEFINITIONS.keys() - reader.keys():
            computed = summarize(reader["matrix"], reader["untrained"])
            reader |= {metric: computed[metric] for metric in lacking}
    return held


def _converted(held: dict[str, Any]) -> dict[str, Any]:
    """Convert schema 1: it has 0 (or a guess) where schema 2 has null, and neither names nor ranks."""
    classes = [frozenset(task["classes"]) for task in held["stream"]["tasks"]]
    for name, reader in held["readers"].items():
        taught: frozenset[int] = frozenset().union(*(classes if name == "linear_probe_all" else ()))
        for row, mine in zip(reader.get("matrix", ()), classes, strict=False):
            taught |= mine
            row[:] = [None if cannot_name(taught, asked) else a for a, asked in zip(row, classes, strict=True)]
        if any(row[i] is None for i, row in enumerate(reader.get("matrix", ())[:-1], start=1)):
            reader["forward_transfer"] = None
        reader["protocol"] = PROTOCOLS.get(name)
    return {**held, "schema": SCHEMA, "rankme": [None] * len(held["images_per_second"])}


def provenance(run: Path) -> dict[str, str]:
    """Provenance of a run from environment.json: `data`, the digest, and unusual values of SETTINGS.

    Different values from several starts are joined by `+`; empty if the file cannot be read.
    """
    held = read_environment(run / "environment.json")
    found = {"data": str(held["data"])} if "data" in held else {}
    for key, usual in SETTINGS.items():
        values = dict.fromkeys(str(start.get(key, usual)) for start in held.get("starts", [held]))
        if list(values) != [usual]:
            found[key] = "+".join(values)
    return found
