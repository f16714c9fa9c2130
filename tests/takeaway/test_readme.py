"""The Python of the README does what it says."""

import re
from pathlib import Path

import pytest
from small_sources import picture

import kaizen.takeaway
from kaizen.commands import COMMANDS, run


def test_the_python_of_the_readme_runs(undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(kaizen.takeaway.__file__).parent / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 2
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/digits-seed0").symlink_to(undisturbed)
    picture(0, (12, 9)).save(tmp_path / "image.png")
    monkeypatch.chdir(tmp_path)
    assert run(["export", "runs/digits-seed0", "--out", "exported/digits", "--no-onnx"], COMMANDS) == 0
    for place in ("runs/digits-seed0", "exported/digits"):
        names: dict[str, object] = {}
        for block in blocks:
            exec(compile(block.replace("runs/digits-seed0", place), "README.md", "exec"), names)
