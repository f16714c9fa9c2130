"""A Python that is too old is told in one line, before it meets a line that it cannot read."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_an_old_python_is_told_before_anything_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = next(node for node in ast.parse((ROOT / "train.py").read_text()).body if isinstance(node, ast.ImportFrom))
    assert (first.module or "").startswith("kaizen."), "train.py meets the check of the package at once"
    text = (ROOT / "kaizen/__init__.py").read_text()
    ast.parse(text, feature_version=(3, 4))
    assert 'f"' not in text, "formatted strings are new in 3.6"
    monkeypatch.setattr(sys, "version_info", (3, 8, 10, "final", 0))
    with pytest.raises(SystemExit) as ended:
        exec(compile(text, "kaizen/__init__.py", "exec"), {})
    assert ended.value.code == 2
    said = "error: Python: is 3.8; allowed: 3.11 or later, as in python3.11 -m venv .venv\n"
    assert capsys.readouterr().err == said
