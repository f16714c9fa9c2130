"""Data without a test split: a part of the training images is held out, always the same."""

from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from small_sources import encoded, load, no_hub, picture, refusal, table, write_parquet

from kaizen.cli.resolve import resolve
from kaizen.data import rows as rows_module
from kaizen.data.holdout import held_out
from kaizen.data.load import load_stream
from kaizen.data.source import Source

__all__ = ["no_hub"]  # a fixture of every test here

LABELS = np.array([0, 1, 0, -1, 0, 2, 1, 0, 0, -1])


def test_each_class_gives_its_part_and_keeps_an_image_to_train_on() -> None:
    held = held_out(LABELS, 0.2)
    assert [int(held[label == LABELS].sum()) for label in (-1, 0, 1, 2)] == [0, 1, 1, 0]
    most = held_out(LABELS, 0.9)
    assert [int(most[label == LABELS].sum()) for label in (-1, 0, 1, 2)] == [0, 4, 1, 0]
    assert (most | ~held).all(), "a larger part contains the smaller"


def test_the_choice_depends_on_the_row_number_alone() -> None:
    held = held_out(np.zeros(20, dtype=np.int64), 0.25)
    assert np.flatnonzero(held).tolist() == [6, 9, 11, 17, 19], (
        "another choice would make tests of past runs training images"
    )
    assert (held == held_out(np.full(20, 7), 0.25)).all()


def shown(source: Source) -> tuple[list[int], list[int]]:
    """Seeds of the pictures of both splits, in their order."""
    every = [np.asarray(picture(seed)).transpose(2, 0, 1) for seed in range(20)]
    return tuple(  # type: ignore[return-value]
        [next(seed for seed in range(20) if (every[seed] == image).all()) for image in split.images]
        for split in (source.train, source.test)
    )


@pytest.mark.parametrize("kind", ["parquet", "disk", "hub", "imagefolder"])
def test_both_splits_keep_the_order_of_the_source(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "CHUNK_BYTES", 3 * 8 * 8 * 2)
    domains = ([i // 2 for i in range(8)], datasets.Value("int64"))
    first, second = table(8, domain=domains), table(4, 8, domain=([9] * 4, datasets.Value("int64")))
    root, options = tmp_path / "data", {"domain_column": "domain"}
    whole = datasets.concatenate_datasets([first, second])
    if kind == "parquet":
        write_parquet(root, first)
        second.to_parquet(root / "train-00001.parquet")
        (root / "test.parquet").write_bytes(b"not looked for")
    elif kind == "disk":
        datasets.DatasetDict({"train": whole}).save_to_disk(root)
    elif kind == "hub":
        monkeypatch.setattr(datasets, "load_dataset", lambda path: datasets.DatasetDict({"train": whole}))
        monkeypatch.setattr(datasets, "load_dataset_builder", lambda path: SimpleNamespace(name="json", config=None))
    else:
        options = {}
        for seed in range(12):
            (root / "abc"[seed // 4]).mkdir(parents=True, exist_ok=True)
            picture(seed).save(root / "abc"[seed // 4] / f"{seed:02}.png")
    name = "hub:some/one" if kind == "hub" else f"{kind}:{root}"
    source = load(tmp_path, name, test_fraction=0.4, **options)
    train, test = shown(source)
    count = 6 if kind == "imagefolder" else 5
    assert len(test) == count
    assert train == sorted(train)
    assert test == sorted({*range(12)} - {*train})
    labels = [seed // 4 if kind == "imagefolder" else (seed % 3 if seed < 8 else (seed - 8) % 3) for seed in range(12)]
    for seeds, split in ((train, source.train), (test, source.test)):
        assert split.labels.tolist() == [labels[seed] for seed in seeds]
        if kind != "imagefolder":
            assert split.domains is not None
            numbers = [seed // 2 if seed < 8 else 4 for seed in seeds]
            assert split.domains.tolist() == numbers
    assert [line for line in source.describe() if f" {count} images of the training split" in line]
    assert shown(load(tmp_path, name, test_fraction=0.4, **options)) == (train, test), "from the cache"


def test_classes_in_the_directory_itself_are_read_where_there_is_no_split(tmp_path: Path) -> None:
    root = tmp_path / "pets"
    for file in ("cat/0.png", "cat/1.png", "train/2.png", "train/3.png"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        picture(int(file[-5])).save(root / file)
    missing = refusal(tmp_path, f"imagefolder:{tmp_path}")
    assert missing.key == "data.train_split"
    assert "data.test_fraction=0.2 needs no test split, also where DIR contains the classes themselves" in str(missing)
    assert "train/2.png is not in train/CLASS/" in str(refusal(tmp_path, f"imagefolder:{root}", test_fraction=0.5))
    found = load(tmp_path, f"imagefolder:{root}", test_fraction=0.5, train_split=".")
    assert found.class_names == ("cat", "train")
    (root / "train").rename(root / "dog")
    found = load(tmp_path, f"imagefolder:{root}", test_fraction=0.5)
    assert found.class_names == ("cat", "dog")
    assert (found.train.labels.tolist(), found.test.labels.tolist()) == ([0, 1], [0, 1])


def test_a_broken_image_is_named_by_its_row_in_the_source(tmp_path: Path) -> None:
    rows = [encoded(picture(i)) for i in range(6)]
    for broken in range(6):
        held = [*rows[:broken], {"bytes": b"no image", "path": None}, *rows[broken + 1 :]]
        folder = tmp_path / str(broken)
        name = write_parquet(folder / "data", table(6, image=(held, datasets.Image())))
        assert f"split 'train', row {broken}: image" in str(refusal(folder, name, image_size=8, test_fraction=0.5))


def test_data_of_which_nothing_can_be_held_out_are_refused(tmp_path: Path) -> None:
    error = refusal(tmp_path, write_parquet(tmp_path / "data", table(3)), test_fraction=0.5)
    assert str(error).startswith("data.test_fraction: is 0.5, but no class of split 'train' has two images")


def test_digits_lose_a_part_of_their_training_split(tmp_path: Path) -> None:
    whole, source = load(tmp_path, "digits"), load(tmp_path, "digits", test_fraction=0.25)
    assert len(source.train.labels) + len(source.test.labels) == len(whole.train.labels)
    assert whole.fingerprint != source.fingerprint
    config = resolve("digits", {"data.test_fraction": "0.25", "data.cache_dir": str(tmp_path / "cache")})[1]
    lines = load_stream(config).describe()
    count = f"{len(source.test.labels)} images of the training split"
    assert f"held out            {count}, for evaluation (data.test_fraction 0.25)" in lines
