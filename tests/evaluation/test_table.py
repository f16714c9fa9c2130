"""The final table and its picture: names of classes, and empty cells."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from kaizen.evaluation.metrics import PROTOCOLS, summarize
from kaizen.evaluation.table import print_results, save_picture

NAMES = ["cat, [red]dog", "a name that is far too long for a column of a table in a terminal", "std::vector"]
NULLS = [[0.8, None, None], [0.5, 0.9, None], [0.6, 0.4, 0.7]]


@pytest.fixture
def results() -> dict[str, Any]:
    knn = {"protocol": PROTOCOLS["knn"], "untrained": [0.1, 0.2, 0.3], "matrix": NULLS}
    old = {"untrained": [0.1, 0.2, 0.3], "matrix": [[0.5, 0.5, 0.5]] * 3}
    readers = {"classifier": old, "knn": knn}
    for reader in readers.values():
        reader |= summarize(reader["matrix"], reader["untrained"])  # type: ignore[arg-type]
    return {"recipe": "digits", "stream": {"tasks": [{"name": name} for name in NAMES]}, "readers": readers}


def rows_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]


def test_rows_are_named_by_classes_and_cells_of_untaught_ones_are_dashes(
    results: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    print_results(results)
    out = capsys.readouterr().out
    rows = rows_of(out)
    assert rows[4] == ["nothing (untrained)", "10.0", "20.0", "30.0", ""]
    assert rows[5] == ["task 0: cat, [red]dog", "80.0", "-", "-", "80.0"]
    assert rows[6] == ["task 1: a name that is far too long for a c…", "50.0", "90.0", "-", "70.0"]
    assert rows[7][0] == "task 2: std::vector"
    assert ["forward transfer", "25.0", "-"] in rows
    assert "for the untrained network: of all tasks" in " ".join(out.split())
    assert "-:                   classes not yet taught to the reader" in out


def test_the_picture_shows_the_same(results: dict[str, Any], tmp_path: Path) -> None:
    save_picture(results, tmp_path / "results.svg")
    picture = ElementTree.fromstring((tmp_path / "results.svg").read_text(encoding="utf-8"))
    told = "".join(picture.itertext()).replace("\xa0", " ")
    assert "task 0: cat, [red]dog" in told
    assert "not yet taught" in told
