"""The final table: each reader's accuracy matrix and metrics, on the terminal and as a picture."""

import io
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from rich.text import Text

from kaizen.evaluation.metrics import DEFINITIONS, mean
from kaizen.run.checkpoint import write_text

COLUMN, LABEL = 10, 44
"""Width of a task's column with its border, and maximum length of a row's label, in characters."""
LEAST_WIDTH = 112
UNTAUGHT = (
    "classes not yet taught to the reader, which it cannot name: counts as 0; a row of -: nothing to learn from; "
    "a column of -: images that are gone"
)
COLD, WARM = (247, 251, 255), (33, 113, 181)
"""Colours of accuracy 0 and 1."""


def print_results(results: Mapping[str, Any]) -> None:
    """Print every reader's accuracy matrix and metrics, each with its definition."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _width(results)
    for part in _parts(results):
        console.print(part)


def show_results(results: Mapping[str, Any], picture: Path) -> None:
    """Print the results and save them as a picture; a failed picture is no error, as results.json has the results."""
    try:
        save_picture(results, picture)
    except Exception as error:
        print(f"note: {picture} was not written ({error})", file=sys.stderr)
    print_results(results)


def save_picture(results: Mapping[str, Any], file: Path) -> None:
    """Write the output of `print_results` as an SVG picture, atomically."""
    console = Console(highlight=False, record=True, file=io.StringIO(), width=_width(results), force_terminal=True)
    for part in _parts(results):
        console.print(part)
    title = f"Kaizen: {results['recipe']}"
    picture = console.export_svg(title=title, theme=DEFAULT_TERMINAL_THEME, unique_id="kaizen")
    # No font is downloaded; the viewer's fixed-width font suffices.
    picture = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL)
    write_text(file, picture.replace("Fira Code", "DejaVu Sans Mono, Menlo, Consolas"))


def _width(results: Mapping[str, Any]) -> int:
    return max(LEAST_WIDTH, COLUMN * (len(results["stream"]["tasks"]) + 2) + max(map(len, _labels(results))))


def _labels(results: Mapping[str, Any]) -> list[str]:
    """Row labels of a matrix: the untrained network, then each task with its classes or its domain."""
    labels = [f"task {index}: {task['name']}" for index, task in enumerate(results["stream"]["tasks"])]
    return ["nothing (untrained)", *(x if len(x) <= LABEL else x[: LABEL - 1] + "…" for x in labels)]


def _parts(results: Mapping[str, Any]) -> list[RenderableType]:
    readers, labels = results["readers"], _labels(results)
    gone = {int(task): missing for task, missing in results.get("gone", {}).items()}
    return [*(_matrix(name, found, labels, gone) for name, found in readers.items()), *_metrics(readers, gone)]


def _matrix(reader: str, found: Mapping[str, Any], labels: Sequence[str], gone: Mapping[int, Collection[int]]) -> Table:
    title, protocol = f"{_name(reader)}: top-1 accuracy in %, over all classes", found.get("protocol")
    table = Table(title=title, title_justify="left", caption=protocol and f"{protocol}\n", caption_justify="left")
    table.add_column("after training", no_wrap=True)
    for index in range(len(labels) - 1):
        table.add_column(f"task {index}", justify="right")
    table.add_column("mean of seen", justify="right")
    # As Text, because names come from the user and may look like rich's markup.
    table.add_row(Text(labels[0]), *map(_cell, found["untrained"]), "")
    for index, (label, row) in enumerate(zip(labels[1:], found["matrix"], strict=False)):
        seen = enumerate(row[: index + 1])
        here = [cell for task, cell in seen if cell is not None or task not in gone.get(index, ())]
        table.add_row(Text(label), *map(_cell, row), _mean_cell(here))
    return table


def _metrics(readers: Mapping[str, Any], gone: Mapping[int, Collection[int]]) -> list[RenderableType]:
    """A table with one row per metric and one column per reader, and the definition of each metric."""
    table = Table(title="metrics in %", title_justify="left")
    table.add_column("")
    for reader in readers:
        table.add_column(_name(reader), justify="right")
    told = []
    for metric, definition in DEFINITIONS.items():
        values = [found.get(metric) for found in readers.values()]
        if any(value is not None for value in values):
            name = metric.replace("_", " ")
            table.add_row(name, *("-" if value is None else f"{100 * value:.1f}" for value in values))
            told.append(f"  {name + ':':20} {definition}")
    if any(None in row for found in readers.values() for row in found["matrix"]):
        told.append(f"  {'-:':20} {UNTAUGHT}")
    rows = [(t, row) for found in readers.values() for t, row in enumerate(found["matrix"])]
    if lacking := [t for t, row in rows if any(row[task] is None for task in gone.get(t, ()) if task <= t)]:
        first = min(lacking)
        missing = f"test images of task {', '.join(map(str, gone[first]))} were gone after task {first}"
        told.append(f"  {missing}: means are over the other tasks, and metrics of the whole stream are left out")
    return [table, *told] if table.row_count else [*told]


def _name(reader: str) -> str:
    return reader.replace("linear_probe_", "linear probe, ")


def _mean_cell(row: Sequence[float | None]) -> Text:
    return _cell(None if all(accuracy is None for accuracy in row) else mean(row))


def _cell(accuracy: float | None) -> Text:
    if accuracy is None:
        return Text("-")
    shade = tuple(round(cold + (warm - cold) * accuracy) for cold, warm in zip(COLD, WARM, strict=True))
    ink = "rgb(255,255,255)" if accuracy > 0.6 else "rgb(0,0,0)"
    return Text(f"{100 * accuracy:.1f}", style=f"{ink} on rgb({shade[0]},{shade[1]},{shade[2]})")
