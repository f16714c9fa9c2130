"""Layouts of data: classes with directories of their own, and splits that are read as one."""

from pathlib import Path
from typing import Any

import datasets
import pytest
from small_sources import LABELS, load, no_hub, picture, refusal, table, write_parquet

__all__ = ["no_hub"]  # a fixture of every test here

SPLITS = ("train", "test")


def folders(root: Path, *files: str) -> str:
    for seed, file in enumerate(files):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(root / file, "PNG")
    return f"imagefolder:{root}"


def test_nested_images_belong_to_the_first_level(tmp_path: Path) -> None:
    files = (
        "train/a/x/1.png",
        "train/a/x/y/2.png",
        "train/a/0.png",
        "train/b/a/3.png",
        "test/a/4.png",
        "test/b/c/5.png",
    )
    name = folders(tmp_path / "data", *files)
    (tmp_path / "data/train/empty/x").mkdir(parents=True)
    for left in ("x/.DS_Store", "x/Thumbs.db", ".cache/0.png", "@eaDir/0.png"):
        (tmp_path / "data/train/a" / left).parent.mkdir(exist_ok=True)
        (tmp_path / "data/train/a" / left).write_bytes(b"\0")
    assert "data.nested=true takes images at any depth" in str(refusal(tmp_path, name))
    source = load(tmp_path, name, nested=True)
    assert source.class_names == ("a", "b")
    assert (source.train.labels.tolist(), source.test.labels.tolist()) == ([0, 0, 0, 1], [0, 1])
    assert source.notes == ("train/empty/ (no image)",)
    held = load(tmp_path, name, nested=True, test_fraction=0.5)
    assert (len(held.train.labels), held.test.labels.tolist()) == (2, [0, 0])


def test_nested_classes_contain_nothing_but_images_and_no_endless_links(tmp_path: Path) -> None:
    name = folders(tmp_path / "data", "train/a/x/0.png", "test/a/0.png")
    link = tmp_path / "data/train/a/x/up"
    link.symlink_to(tmp_path / "data/train/a")
    error = refusal(tmp_path, name, nested=True)
    assert error.key == "data.source"
    assert "up is a link to a directory that contains it" in str(error)
    link.unlink()
    (tmp_path / "data/train/a/x/notes.txt").write_text("x")
    assert "x/notes.txt is not an image" in str(refusal(tmp_path, name, nested=True))
    stray = folders(tmp_path / "stray", "train/0.png", "test/a/0.png")
    assert "data.nested" not in str(refusal(tmp_path, stray)), "it would not help"
    assert refusal(tmp_path, "digits", nested=True).key == "data.nested"


@pytest.mark.parametrize("kind", ["parquet", "disk", "hub"])
@pytest.mark.parametrize(
    "label",
    [([-1] * 4, LABELS), ([None] * 4, datasets.Value("null")), ([None, -1, None, -1], datasets.Value("int64"))],
    ids=["declared", "null", "numbers"],
)
def test_an_unlabelled_split_is_added_to_the_labelled_one(
    tmp_path: Path, kind: str, label: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"train": table(6), "unlabeled": table(4, 20, label=label), "test": table(3, 50), "more": table(2, 60)}
    root = tmp_path / "data"
    if kind == "parquet":
        root.mkdir()
        for name, part in parts.items():
            part.to_parquet(root / f"{name}.parquet")
    elif kind == "disk":
        datasets.DatasetDict(parts).save_to_disk(root)
    else:
        monkeypatch.setattr(datasets, "load_dataset", lambda path: parts)
        builder = type("Builder", (), {"name": "json", "config": None})
        monkeypatch.setattr(datasets, "load_dataset_builder", lambda path: builder)
    name = "hub:some/one" if kind == "hub" else f"{kind}:{root}"
    source = load(tmp_path, name, train_split="train+unlabeled", test_split="test+more")
    assert source.class_names == ("cat", "dog", "eel")
    assert source.train.labels.tolist() == [0, 1, 2, 0, 1, 2, -1, -1, -1, -1]
    assert source.test.labels.tolist() == [0, 1, 2, 0, 1]
    last = [split.images[-1].transpose(1, 2, 0).tobytes() for split in (source.train, source.test)]
    assert last == [picture(seed).tobytes() for seed in (23, 61)]
    held = load(tmp_path, name, train_split="train+unlabeled", test_fraction=0.4)
    assert (len(held.train.labels), held.test.labels.tolist().count(-1), len(held.test.labels)) == (7, 0, 3)
    assert "unlabelled" in str(refusal(tmp_path / "other", name, train_split="train+unlabelled"))


def test_names_of_summed_splits_are_merged(tmp_path: Path) -> None:
    root = tmp_path / "data"
    name = write_parquet(root)
    table(2, 30, label=([0, 1], datasets.ClassLabel(names=["ant", "cat"]))).to_parquet(root / "extra.parquet")
    source = load(tmp_path, name, train_split="train+extra")
    assert source.class_names == ("ant", "cat", "dog", "eel")
    assert source.train.labels.tolist() == [1, 2, 3, 1, 2, 3, 0, 1]


def test_directories_of_two_splits_are_summed(tmp_path: Path) -> None:
    files = ("train/b/0.png", "extra/a/1.png", "extra/b/2.png", "test/a/3.png")
    source = load(tmp_path, folders(tmp_path / "data", *files), train_split="train+extra")
    assert source.class_names == ("a", "b")
    assert source.train.labels.tolist() == [1, 0, 1]


def test_keys_that_are_not_set_leave_the_names_of_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kaizen.data.store.FORMAT", 3)
    assert load(tmp_path, "digits").fingerprint == "e9ffa5828b353b8dc1d21f692867a5df14e946ae2ba97ba687eb35df114cbb88"
