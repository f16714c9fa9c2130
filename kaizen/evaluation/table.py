"""The final table: each reader's accuracy matrix and metrics, on the terminal and as a picture."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.terminal_theme import DEFAULT_TERMINAL_THEME
from rich.text import Text

from kaizen.evaluation.metrics import DEFINITIONS
from kaizen.run.checkpoint import write_text

COLUMN = 10
"""Characters of a task's column, its border included."""
LEAST_WIDTH = 112
COLD, WARM = (247, 251, 255), (33, 113, 181)
"""Colours of accuracy 0 and 1."""


def print_results(results: Mapping[str, Any]) -> None:
    """Print every reader's accuracy matrix and metrics, each with its definition."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _width(results)
    for part in _parts(results):
        console.print(part)


def save_picture(results: Mapping[str, Any], file: Path) -> None:
    """Write what `print_results` prints as an SVG picture, atomically."""
    console = Console(highlight=False, record=True, file=io.StringIO(), width=_width(results), force_terminal=True)
    for part in _parts(results):
        console.print(part)
    title = f"Kaizen: {results['recipe']}"
    picture = console.export_svg(title=title, theme=DEFAULT_TERMINAL_THEME, unique_id="kaizen")
    # No font is loaded from elsewhere: the viewer's own fixed-width one will do.
    picture = re.sub(r"@font-face \{.*?\}", "", picture, flags=re.DOTALL)
    write_text(file, picture.replace("Fira Code", "DejaVu Sans Mono, Menlo, Consolas"))


def _width(results: Mapping[str, Any]) -> int:
    return max(LEAST_WIDTH, COLUMN * (len(results["stream"]["tasks"]) + 3))


def _parts(results: Mapping[str, Any]) -> list[RenderableType]:
    readers = results["readers"]
    count = len(results["stream"]["tasks"])
    return [*(_matrix(name, found, count) for name, found in readers.items()), *_metrics(readers)]


def _matrix(reader: str, found: Mapping[str, Any], tasks: int) -> Table:
    table = Table(title=f"{_name(reader)}: top-1 accuracy in %, over all classes", title_justify="left")
    table.add_column("after training")
    for index in range(tasks):
        table.add_column(f"task {index}", justify="right")
    table.add_column("mean of seen", justify="right")
    table.add_row("nothing", *map(_cell, found["untrained"]), "")
    for index, row in enumerate(found["matrix"]):
        seen = row[: index + 1]
        table.add_row(f"task {index}", *map(_cell, row), _cell(sum(seen) / len(seen)))
    return table


def _metrics(readers: Mapping[str, Any]) -> list[RenderableType]:
    """A table with a row a metric and a column a reader, and what each metric means."""
    table = Table(title="metrics in %", title_justify="left")
    table.add_column("")
    for reader in readers:
        table.add_column(_name(reader), justify="right")
    told = []
    for metric, definition in DEFINITIONS.items():
        values = [found.get(metric) for found in readers.values()]
        if any(value is not None for value in values):
            name = metric.replace("_", " ")
            table.add_row(name, *("" if value is None else f"{100 * value:.1f}" for value in values))
            told.append(f"  {name + ':':20} {definition}")
    return [table, *told]


def _name(reader: str) -> str:
    return reader.replace("linear_probe_", "linear probe, ")


def _cell(accuracy: float) -> Text:
    shade = tuple(round(cold + (warm - cold) * accuracy) for cold, warm in zip(COLD, WARM, strict=True))
    ink = "rgb(255,255,255)" if accuracy > 0.6 else "rgb(0,0,0)"
    return Text(f"{100 * accuracy:.1f}", style=f"{ink} on rgb({shade[0]},{shade[1]},{shade[2]})")
