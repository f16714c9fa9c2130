"""Class names: read from every file before a library unifies them, mapped by name, numbers sorted by value."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from small_sources import encoded, load, no_hub, picture, refusal, table, write_parquet

from kaizen.data.columns import sort_names
from kaizen.data.splits import Source, Split

__all__ = ["no_hub"]  # a fixture of every test here

LEVELS = {"cat": 40, "dog": 120, "eel": 200}
TEXT, NUMBER = datasets.Value("string"), datasets.Value("int64")


def shown(kinds: list[str], label: Any = None) -> datasets.Dataset:
    """Images whose grey level shows their class; encoded by default as class_encode_column does with one split."""
    images = [encoded(picture(0).point(lambda _, level=LEVELS[kind]: level)) for kind in kinds]
    names = sorted(set(kinds))
    encoding = label or ([names.index(kind) for kind in kinds], datasets.ClassLabel(names=names))
    return table(len(kinds), image=(images, datasets.Image()), label=encoding)


def named_rightly(source: Source, split: Split) -> bool:
    return all(
        LEVELS[source.class_names[label]] == image.mean()
        for label, image in zip(split.labels, split.images, strict=True)
    )


@pytest.mark.parametrize("kind", ["parquet", "shards", "disk", "strings"])
def test_a_number_means_what_its_own_file_says(tmp_path: Path, kind: str) -> None:
    train, test = shown(["dog", "cat", "dog", "eel"]), shown(["eel", "dog", "dog"])
    root = tmp_path / "data"
    name = f"parquet:{root}"
    if kind == "disk":
        datasets.DatasetDict({"train": train, "test": test}).save_to_disk(root)
        name = f"disk:{root}"
    elif kind == "shards":
        write_parquet(root, shown(["dog", "cat"]), test)
        shown(["dog"], ([0], datasets.ClassLabel(names=["dog", "cat"]))).to_parquet(root / "train-00001.parquet")
        shown(["eel"]).to_parquet(root / "train-00002.parquet")
    else:
        write_parquet(root, train, shown(["eel", "dog"], (["eel", "dog"], TEXT)) if kind == "strings" else test)
    source = load(tmp_path, name)
    assert source.class_names == ("cat", "dog", "eel")
    assert len(source.train.labels) == 4
    assert named_rightly(source, source.train)
    assert named_rightly(source, source.test)


def test_names_that_all_files_declare_alike_keep_their_order(tmp_path: Path) -> None:
    names = datasets.ClassLabel(names=["10", "eel", "2", "unused"])
    source = load(
        tmp_path,
        write_parquet(tmp_path / "data", table(3, label=([0, 1, 2], names)), table(3, label=([2, 1, 0], names))),
    )
    assert source.class_names == ("10", "eel", "2", "unused")
    assert (source.train.labels.tolist(), source.test.labels.tolist()) == ([0, 1, 2], [2, 1, 0])


def test_names_beside_plain_numbers_are_refused_and_nulls_are_not(tmp_path: Path) -> None:
    name = write_parquet(tmp_path / "data", shown(["cat", "dog"]), shown(["dog", "cat"], ([1, 0], NUMBER)))
    error = refusal(tmp_path, name)
    assert error.key == "data.label_column"
    assert "has names in split 'train' and numbers in split 'test'" in str(error)
    write_parquet(tmp_path / "data", test=shown(["eel", "dog", "cat"]))
    table(2, label=([None, None], datasets.Value("null"))).to_parquet(tmp_path / "data" / "train-00001.parquet")
    source = load(tmp_path, name)
    assert source.train.labels.tolist() == [0, 1, 2, 0, 1, 2, -1, -1]
    assert source.class_names == ("cat", "dog", "eel")


def test_names_declared_of_another_integer_type_and_of_categories_are_read(tmp_path: Path) -> None:
    held = shown(["dog", "cat"]).data.table
    small = held.set_column(1, "label", held.column("label").cast(pa.int8())).replace_schema_metadata(
        held.schema.metadata
    )
    category = held.set_column(1, "label", pa.array(["dog", "eel"]).dictionary_encode()).replace_schema_metadata(None)
    (tmp_path / "data").mkdir()
    parquet.write_table(small, tmp_path / "data" / "train.parquet")
    parquet.write_table(category, tmp_path / "data" / "test.parquet")
    source = load(tmp_path, f"parquet:{tmp_path / 'data'}")
    assert [source.class_names[label] for label in source.train.labels] == ["dog", "cat"]
    assert [source.class_names[label] for label in source.test.labels] == ["dog", "eel"]


def test_names_that_are_all_numbers_sort_by_value(tmp_path: Path) -> None:
    assert sort_names(["10", "9", "b"]) == ["10", "9", "b"]
    assert sort_names({"10", "9", "09"}) == ["09", "9", "10"]
    words = [str(i) for i in range(12)]
    both = [table(12, label=(words, TEXT)), table(12, label=(list(range(12)), NUMBER))]
    sources = [load(tmp_path, write_parquet(tmp_path / str(i), part, part)) for i, part in enumerate(both)]
    for i, name in enumerate(words):
        for split in ("train", "test"):
            place = tmp_path / "folders" / split / name
            place.mkdir(parents=True)
            picture(i).save(place / "0.png")
    sources.append(load(tmp_path, f"imagefolder:{tmp_path / 'folders'}"))
    assert [list(source.class_names) for source in sources] == [words] * 3
    assert sources[0].digest() == sources[1].digest()
    assert np.array_equal(sources[0].train.labels, range(12))
    assert sorted(sources[2].train.labels) == list(range(12))
