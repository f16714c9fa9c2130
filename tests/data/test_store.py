"""The cache of decoded images: complete or absent, built again when damaged."""

import hashlib
import json
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from small_sources import LABELS, load, no_hub, table, write_parquet

from kaizen.data import images as images_module
from kaizen.data import store
from kaizen.data.source import load_source

__all__ = ["no_hub"]  # a fixture of every test here


def test_a_second_load_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write_parquet(tmp_path / "data")
    first = load(tmp_path, name)

    def fail(*args: Any, **options: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(images_module, "decode_image", fail)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    (tmp_path / "data").rename(tmp_path / "moved")
    second = load(tmp_path, f"parquet:{tmp_path / 'moved'}")
    assert second.fingerprint == first.fingerprint
    assert np.array_equal(second.train.images, first.train.images)
    assert (second.mean, second.std, second.class_names) == (first.mean, first.std, first.class_names)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.fingerprint]


def test_files_changed_in_place_are_seen(tmp_path: Path) -> None:
    name = write_parquet(tmp_path / "data")
    file = tmp_path / "data" / "train-00000.parquet"
    before, times = load(tmp_path, name), file.stat()
    write_parquet(tmp_path / "data", table(label=([2, 2, 2, 0, 0, 1], LABELS)))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = load(tmp_path, name)
    assert after.fingerprint != before.fingerprint
    assert after.train.labels.tolist() == [2, 2, 2, 0, 0, 1]


def test_every_option_that_changes_the_images_changes_the_key(tmp_path: Path) -> None:
    extra: dict[str, Any] = {"other": ([0] * 6, datasets.Value("int64"))}
    name = write_parquet(tmp_path / "data", table(**extra), table(**extra))
    options: list[dict[str, Any]] = [{}, {"image_size": 9}, {"label_column": "other"}, {"domain_column": "other"}]
    assert len({load(tmp_path, name, **option).fingerprint for option in options}) == len(options)


def test_half_written_and_stale_builds_are_ignored(tmp_path: Path) -> None:
    name = write_parquet(tmp_path / "data")
    first = load(tmp_path, name)
    cache = tmp_path / "cache"
    (cache / first.fingerprint).rename(tmp_path / "aside")
    old, young = (cache / f".building-{first.fingerprint[:16]}-{which}" for which in ("old", "young"))
    for left in (old, young):
        (left / "entry").mkdir(parents=True)
        (left / "entry" / "train.images.npy").write_bytes(b"half")
    past = time.time() - 2 * store.STALE_SECONDS
    for path in (old / "entry" / "train.images.npy", old / "entry", old):
        os.utime(path, (past, past))
    assert load(tmp_path, name).fingerprint == first.fingerprint
    assert young.exists()
    assert not old.exists()


@pytest.mark.parametrize("damage", ["no meta", "short images", "long labels", "other labels", "junk meta", "no file"])
def test_damaged_entries_are_built_again_and_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    name = write_parquet(tmp_path / "data")
    first = load(tmp_path, name)
    entry = tmp_path / "cache" / first.fingerprint
    expected = np.array(first.train.images)
    if damage == "no meta":
        (entry / "meta.json").unlink()
    elif damage == "short images":
        os.truncate(entry / "train.images.npy", 300)
    elif damage == "long labels":
        np.save(entry / "test.labels.npy", np.zeros(9, np.int64))
    elif damage == "other labels":
        np.save(entry / "test.labels.npy", np.full(3, 5))
    elif damage == "junk meta":
        (entry / "meta.json").write_text(json.dumps([1]))
    else:
        (entry / "test.images.npy").unlink()
    capfd.readouterr()
    again = load(tmp_path, name)
    said = capfd.readouterr().err.strip()
    assert "damaged" in said
    assert "\n" not in said
    assert np.array_equal(again.train.images, expected)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.fingerprint]


def test_nothing_is_printed_without_a_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = write_parquet(tmp_path / "data")
    capfd.readouterr()
    load(tmp_path, name)
    assert capfd.readouterr() == ("", "")
    assert not datasets.are_progress_bars_disabled()


def _build_beside(barrier: Any, results: Any, name: str, cache: str) -> None:
    """One builder: both have decoded everything before either publishes."""
    publish = store.publish

    def together(entry: Path, final: Path) -> None:
        barrier.wait(60)
        publish(entry, final)

    store.publish = together
    source = load_source(name, cache_dir=cache)
    results.put((source.fingerprint, int(source.train.images.sum())))


def test_two_processes_that_build_at_once_share_one_entry(tmp_path: Path) -> None:
    name = write_parquet(tmp_path / "data")
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    arguments = (barrier, results, name, str(tmp_path / "cache"))
    builders = [context.Process(target=_build_beside, args=arguments) for _ in range(2)]
    for builder in builders:
        builder.start()
    found = [results.get(timeout=60) for _ in builders]
    for builder in builders:
        builder.join(60)
    assert [builder.exitcode for builder in builders] == [0, 0]
    assert found[0] == found[1] == (load(tmp_path, name).fingerprint, int(load(tmp_path, name).train.images.sum()))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [found[0][0]]


def test_the_digest_knows_every_pixel_and_label(tmp_path: Path) -> None:
    source = load(tmp_path, write_parquet(tmp_path / "data"))
    assert source.train.sha256 == hashlib.sha256(source.train.images.tobytes()).hexdigest()
    labels = source.train.labels.copy()
    labels[[0, -1]] = labels[[-1, 0]]
    assert labels[0] != labels[-1]
    others = [replace(source.train, sha256=source.test.sha256), replace(source.train, labels=labels)]
    digests = {source.digest(), *(replace(source, train=other).digest() for other in others)}
    assert len(digests) == 3
