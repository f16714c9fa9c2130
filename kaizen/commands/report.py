"""`python -m kaizen report RUN ...`: compares runs, mean and spread over seeds, on the terminal and in files."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from kaizen.commands.parser import Parser
from kaizen.config.schema import flatten, read_header
from kaizen.config.yaml import parse_yaml
from kaizen.errors import ConfigError
from kaizen.evaluation.report import (
    SEED,
    RunRecord,
    Sheet,
    csv_text,
    definitions,
    group_runs,
    markdown,
    sheets,
    summarise_groups,
)
from kaizen.evaluation.schema import DAMAGED, provenance, read_results
from kaizen.plugins import short
from kaizen.run.checkpoint import write_text

WIDTH = 240
"""Characters per line if there is no terminal."""
ABOUT = """Compare runs. Runs that differ only in run.seed and in keys that do not affect the result form a group, named
after recipe, preset and the keys by which groups of that name differ. Runs with different data (by their digest,
wherever they are), mixed precision or gradient accumulation form separate groups, as their names show. For every reader
and metric: mean, standard deviation (ddof 1) and number of seeds, with each metric's definition."""
CLOSING = """Undefined metrics are empty and not counted: those of unfinished runs, some of runs with one task, and the
forward transfer of readers that cannot name a class before they are taught it.
report.csv contains fractions in full precision; report.md and the terminal show per cent.

  python -m kaizen report runs/sweep --baseline cassle-replay      # each group against its recipe's cassle-replay
  python -m kaizen report runs/sweep --baseline 'kaizen optim.lr=0.2'      # ... against its kaizen with that rate"""


def main(tokens: Sequence[str]) -> int:
    """Print the comparison and write report.md and report.csv."""
    parser = Parser("python -m kaizen report RUN [RUN ...] [--out DIR] [--baseline GROUP]", ABOUT, CLOSING)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run directory, or a directory that contains runs")
    parser.add_argument("--out", metavar="DIR", help="where files are written [one RUN: RUN/report; several: nowhere]")
    parser.add_argument(
        "--baseline",
        metavar="GROUP",
        help="differences, paired by seed, from this group, or from "
        "the nearest on the same data: PRESET [KEY=VALUE ...]",
    )
    given = parser.parse_args(tokens)
    found = {path.resolve(): path for run in given.runs for path in find_runs(Path(run).expanduser())}
    groups = group_runs([read_run(path) for path in found.values()])
    rows = summarise_groups(groups, given.baseline)
    _print(sheets(rows))
    for group in groups:
        for record in group.repeated:
            print(f"note: {record.path} repeats a seed of {group.name} and is left out")
    bases = {row.group: row.baseline for row in rows}
    for name in bases if given.baseline is not None else ():
        if bases[name] is None and name not in bases.values():
            why = "no group on the same data, several equally near, or this one"
            print(f"note: {name} has no baseline: --baseline describes {why}")
    out = given.out or (os.path.join(given.runs[0], "report") if len(given.runs) == 1 else None)
    if out is not None:
        _write(Path(out).expanduser(), {"report.md": markdown(sheets(rows)), "report.csv": csv_text(rows)})
    return 0


def find_runs(path: Path) -> list[Path]:
    """The path itself if it is a run directory, else every run directory below it.

    Raises:
        ConfigError: it is not a run directory and contains none.
    """
    runs = []
    for folder, folders, files in os.walk(path):
        folders.sort()
        if "config.yaml" in files and {"status.json", "results.json"} & set(files):
            runs.append(Path(folder))
            folders.clear()  # everything in a run directory belongs to that run
    if not runs:
        raise ConfigError("RUN", f"{str(path)!r} is not a run directory and contains none; allowed: what train.py left")
    return runs


def read_run(path: Path) -> RunRecord:
    """A run directory's configuration and results; a run without results.json has no readers yet.

    Raises:
        ConfigError: names the file that cannot be read.
    """
    file = path / "config.yaml"
    try:
        text = file.read_text(encoding="utf-8")
        config = _configuration(parse_yaml(text))
        if type(config[SEED]) is not int:
            raise ValueError(f"{SEED} is {config[SEED]!r}")
        file = path / "results.json"
        if file.exists():
            results = read_results(file)
        else:
            recipe, preset = read_header(text)
            results = {"recipe": recipe or "unknown", "preset": preset, "readers": {}}
        readers = results["readers"]
        if not all(isinstance(reader, dict) for reader in readers.values()):
            raise ValueError("a reader has no metrics")
        origin = str(results["recipe"]), results.get("preset")
        return RunRecord(str(path), *origin, config, readers, provenance(path), _memory(results))
    except DAMAGED as error:
        raise ConfigError(str(file), f"cannot be read ({type(error).__name__}: {error})") from None


def _configuration(tree: dict[str, Any]) -> dict[str, Any]:
    """Flat keys of a run; own parts count by name and content of their file, wherever it lies, and are not loaded."""
    code, readers = tree.pop("code", {}), tree.get("eval", {}).get("readers", ())
    files = {f"code.{short(name)}": digest[:8] for name, digest in code.items() if name not in readers}
    return {key: short(value) for key, value in flatten(tree).items()} | files


def _memory(results: Mapping[str, Any]) -> tuple[int, int] | None:
    """Bytes of images and statistics after the last task done, where both are known."""
    held = results.get("memory_bytes", {})
    last = [held[part][-1] for part in ("images", "statistics") if held.get(part)]
    return (int(last[0]), int(last[1])) if len(last) == 2 and None not in last else None


def _print(tables: Sequence[Sheet]) -> None:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = WIDTH
    for sheet in tables:
        table = Table(title=sheet.title)
        for number, name in enumerate(sheet.header):
            table.add_column(name, justify="right" if number else "left", overflow="fold")
        for row in sheet.rows:
            table.add_row(*row)
        console.print(table)
    for line in definitions():
        console.print(f"  {line}")


def _write(directory: Path, files: dict[str, str]) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_text(directory / name, text)
            print(f"wrote {directory / name}")
    except OSError as error:
        raise ConfigError("--out", f"{directory} cannot be written ({error.strerror})") from None
