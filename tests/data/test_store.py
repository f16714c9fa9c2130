"""The cache of decoded images: complete or absent, and rebuilt if damaged."""

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
from small_sources import LABELS, encoded, load, no_hub, picture, table, write_parquet

from kaizen.data import cache as caches
from kaizen.data import entries
from kaizen.data import rows as rows_module
from kaizen.data.source import load_source
from kaizen.errors import ConfigError

__all__ = ["no_hub"]  # a fixture of every test here

STRUCT = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
NUMBER = datasets.Value("int64")


def test_a_second_load_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write_parquet(tmp_path / "data")
    first = load(tmp_path, name)

    def fail(*args: Any, **options: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(rows_module, "decode_image", fail)
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


@pytest.mark.parametrize("kind", ["parquet", "disk"])
def test_files_that_a_table_names_are_watched(tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str) -> None:
    file = tmp_path / "0.png"
    picture(0).save(file)
    named = table(3, image=([{"bytes": None, "path": str(file)}, encoded(picture(1)), encoded(picture(2))], STRUCT))
    if kind == "disk":
        datasets.DatasetDict({"train": named, "test": table(3, 100)}).save_to_disk(tmp_path / "data")
    name = f"disk:{tmp_path / 'data'}" if kind == "disk" else write_parquet(tmp_path / "data", named)
    before = load(tmp_path, name)
    capfd.readouterr()
    assert load(tmp_path, name).digest() == before.digest()
    assert capfd.readouterr().err == ""
    picture(3).save(file)
    os.utime(file, (1, 1))
    after = load(tmp_path, name)
    assert np.array_equal(after.train.images[0], np.asarray(picture(3)).transpose(2, 0, 1))
    assert np.array_equal(after.train.images[1:], before.train.images[1:])
    assert f"outdated ({file} has changed)" in capfd.readouterr().err
    file.unlink()
    with pytest.raises(ConfigError, match=rf"split 'train', row 0, {file}: image cannot be read \(.*No such file"):
        load(tmp_path, name)


def test_images_elsewhere_are_refused_as_they_may_change(tmp_path: Path) -> None:
    named = table(1, image=([{"bytes": None, "path": "https://example.org/0.png"}], STRUCT))
    with pytest.raises(ConfigError, match=r"row 0, https://example.org/0.png: .*allowed: images in the table itself"):
        load(tmp_path, write_parquet(tmp_path / "data", named), image_size=8)


def test_broken_images_are_left_out_where_that_is_asked_for_and_counted(tmp_path: Path) -> None:
    good = [encoded(picture(i)) for i in range(5)]
    rows = [None, good[0], {"bytes": b"junk", "path": "1.png"}, good[1], {"bytes": good[2]["bytes"][:50], "path": None}]
    train = table(5, image=(rows, STRUCT), label=([2, 1, 0, 0, 1], LABELS), place=([0, 1, 2, 3, 4], NUMBER))
    test = table(3, 100, place=([0, 1, 2], NUMBER))
    name = write_parquet(tmp_path / "data", train, test)
    with pytest.raises(ConfigError, match=r"split 'train', row 0: .*\(no image in this row\); data.broken=skip leaves"):
        load(tmp_path, name, domain_column="place")
    for _ in ("decoded", "from the cache"):
        source = load(tmp_path, name, broken="skip", domain_column="place")
        assert np.array_equal(source.train.images[1], np.asarray(picture(1)).transpose(2, 0, 1))
        assert source.train.labels.tolist() == [1, 0]
        assert source.train.domains is not None
        assert source.train.domains.tolist() == [1, 3]
        assert source.test.domains is not None
        assert source.test.domains.tolist() == [0, 1, 2]
        said = "left out            3 of the images (data.broken=skip), the first: split 'train', row 0: image cannot"
        assert [line for line in source.describe() if line.startswith(said)]
    assert "row 2, 1.png: image cannot be read" in source.train.skipped[1]
    whole = load(tmp_path, write_parquet(tmp_path / "whole", train.select([1, 3]), test), domain_column="place")
    assert np.array_equal(whole.train.images, source.train.images)
    assert whole.digest() != source.digest()


def test_a_split_of_broken_images_alone_is_refused(tmp_path: Path) -> None:
    name = write_parquet(tmp_path / "data", table(2, image=([None, {"bytes": b"junk", "path": None}], STRUCT)))
    with pytest.raises(ConfigError, match="no image of split 'train' can be read; the first: split 'train', row 0"):
        load(tmp_path, name, broken="skip")


def test_a_file_that_is_refused_is_never_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(row: Any, background: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(rows_module, "decode_image", refuse)
    with pytest.raises(ConfigError, match=r"row 0: image cannot be read \(Permission denied\)$"):
        load(tmp_path, write_parquet(tmp_path / "data"), broken="skip")


def test_every_option_that_changes_the_images_changes_the_key(tmp_path: Path) -> None:
    extra: dict[str, Any] = {"other": ([0] * 6, datasets.Value("int64"))}
    name = write_parquet(tmp_path / "data", table(**extra), table(**extra))
    options: list[dict[str, Any]] = [{}, {"image_size": 9}, {"label_column": "other"}, {"domain_column": "other"}]
    options += [{"background": "black"}, {"broken": "skip"}]
    assert len({load(tmp_path, name, **option).fingerprint for option in options}) == len(options)


def test_half_written_and_stale_builds_are_ignored(tmp_path: Path) -> None:
    name = write_parquet(tmp_path / "data")
    first = load(tmp_path, name)
    cache = tmp_path / "cache"
    (cache / first.fingerprint).rename(tmp_path / "aside")
    rests = old, others, young = [cache / f".building-{which}" for which in (first.fingerprint[:16], "f0", "young")]
    for left in rests:
        (left / "entry").mkdir(parents=True)
        (left / "entry" / "train.images.npy").write_bytes(b"half")
    past = time.time() - 2 * caches.STALE_SECONDS
    for left in (old, others):
        for path in (left / "entry" / "train.images.npy", left / "entry", left):
            os.utime(path, (past, past))
    assert load(tmp_path, name).fingerprint == first.fingerprint
    assert [left for left in rests if left.exists()] == [young]


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
    publish = entries.publish

    def together(*arguments: Any) -> None:
        barrier.wait(60)
        publish(*arguments)

    entries.publish = together
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
