"""The cache of decoded images as a directory: its location, and what the command lists and deletes."""

import os
from pathlib import Path

import numpy as np
import pytest
from small_sources import load, no_hub, write_parquet

from kaizen.commands import COMMANDS, run
from kaizen.data import cache as caches

__all__ = ["no_hub"]  # a fixture of every test here


def _cache(tmp_path: Path) -> list[str]:
    """Two data sets, one three hours old, remains of a killed builder, a builder's folder, and unrelated files."""
    cache = tmp_path / "cache"
    names = [load(tmp_path, "digits").fingerprint, load(tmp_path, write_parquet(tmp_path / "data")).fingerprint]
    for name, age in ((names[0], 3 * 3600), (".building-f00", 2 * caches.STALE_SECONDS)):
        (cache / name).mkdir(exist_ok=True)
        for path in (*(cache / name).iterdir(), cache / name):
            os.utime(path, (path.stat().st_atime - age, path.stat().st_mtime - age))
    (cache / ".building-now").mkdir()
    (cache / "mine").mkdir()
    (cache / "notes.txt").write_text("mine")
    return names


def test_the_command_lists_sizes_ages_and_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names, cache = _cache(tmp_path), str(tmp_path / "cache")
    capsys.readouterr()
    assert run(["cache", "--data.cache_dir", cache], COMMANDS) == 0
    left, older, newer, work, total = capsys.readouterr().out.splitlines()
    assert (left.split()[3:], work.split()[3:]) == (["2", "days", "unfinished"], ["0", "min", "unfinished"])
    assert older.split() == [names[0][:12], "361", "kB", "3", "hours", "digits"]
    assert newer.split()[3:] == ["0", "min", f"parquet:{tmp_path}/data"]
    assert total.endswith(f"kB in {cache}")
    assert len(list(Path(cache).iterdir())) == 6
    assert run(["cache", "--data.cache_dir", str(tmp_path / "none")], COMMANDS) == 0
    assert capsys.readouterr().out == f"0 B in {tmp_path}/none\n"
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("by", ["name", "source", "all"])
def test_the_command_clears_what_it_lists_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], by: str
) -> None:
    names, cache = _cache(tmp_path), tmp_path / "cache"
    held = load(tmp_path, "digits").train.images
    wanted = {"name": [names[0][:12]], "source": ["digits"], "all": []}[by]
    capsys.readouterr()
    assert run(["cache", "--clear", *wanted, "--data.cache_dir", str(cache)], COMMANDS) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1].endswith(f"kB deleted from {cache}")
    kept = {"mine", "notes.txt", ".building-now", *([names[1], ".building-f00"] if by != "all" else [])}
    assert {path.name for path in cache.iterdir()} == kept
    assert np.asarray(held).max() == 255, "a run keeps its mapped files"
    for unknown in ("digits", ""):
        assert run(["cache", "--clear", unknown, "--data.cache_dir", str(cache)], COMMANDS) == 2
        assert f"--clear: is {unknown!r}; allowed: a name or source" in capsys.readouterr().err


def test_an_entry_that_cannot_be_read_is_listed_and_cleared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names, cache = _cache(tmp_path), tmp_path / "cache"
    (cache / names[0] / "meta.json").write_text("[1]")
    assert {entry.source for entry in caches.entries(cache)} == {"", "unfinished", f"parquet:{tmp_path}/data"}
    assert run(["cache", "--clear", names[0], "--data.cache_dir", str(cache)], COMMANDS) == 0
    assert names[0][:12] in capsys.readouterr().out
    assert not (cache / names[0]).exists()
