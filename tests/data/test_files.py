"""Files of local sources: only these are read, whatever their names; files that are not read are reported."""

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from small_sources import LABELS, encoded, load, no_hub, picture, refusal, table, write_parquet

from kaizen.data.source import Source

__all__ = ["no_hub"]  # a fixture of every test here


def folders(root: Path, *files: str, **options: Any) -> str:
    for seed, file in enumerate(files or ("train/a/0.png", "train/b/0.png", "test/a/0.png", "test/b/0.png")):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        picture(seed).save(root / file, **options)
    return f"imagefolder:{root}"


def counts(source: Source) -> dict[str, int]:
    return {name: int((source.train.labels == i).sum()) for i, name in enumerate(source.class_names)}


# ------------------------------------------------------------------------------------------------ parquet


@pytest.mark.parametrize(
    "name",
    [
        "train_unlabeled.parquet",
        "train2.parquet",
        "trainer-00000.parquet",
        "train.parquet.crc",
        "train.old.parquet",
    ],
)
def test_a_name_that_only_begins_like_the_split_is_not_read(tmp_path: Path, name: str) -> None:
    source = write_parquet(tmp_path / "data")
    table(5, 50).to_parquet(tmp_path / "data" / name)
    found = load(tmp_path, source)
    assert len(found.train.labels) == 6
    assert found.notes == ((name,) if name.endswith(".parquet") else ())


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["train.parquet"], True),
        (["train-a.parquet", "train-b.parquet"], True),
        (["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], True),
        (["train-00000-of-00002-0a9b74b3ef9c3b56.parquet", "train-00001-of-00002-9c3b560a9b74b3ef.parquet"], True),
        (["train-00000-of-00002.parquet"], False),
        (["train.parquet", "train-unlabeled.parquet"], False),
        (["train.parquet", "train-00000-of-00001.parquet"], False),
        (["train-00000-of-00001.parquet", "train-old.parquet"], False),
    ],
)
def test_a_split_is_all_of_its_parts_once(tmp_path: Path, names: list[str], taken: bool) -> None:
    source = write_parquet(tmp_path / "data")
    next((tmp_path / "data").glob("train*")).unlink()
    for number, name in enumerate(names):
        table(3, 10 * number).to_parquet(tmp_path / "data" / name)
    if taken:
        assert len(load(tmp_path, source).train.labels) == 3 * len(names)
    else:
        assert "split 'train' has train" in str(refusal(tmp_path, source))


def test_names_that_a_library_takes_for_patterns_are_names(tmp_path: Path) -> None:
    write_parquet(tmp_path / "plain" / "data")
    folders(tmp_path / "plain" / "pictures", *(f"{split}/std::{c}/0.png" for split in ("train", "test") for c in "ab"))
    datasets.DatasetDict({"train": table(3), "test": table(3)}).save_to_disk(tmp_path / "plain" / "saved")
    root = (tmp_path / "plain").rename(tmp_path / "a::b [0-9] *?#% {x}")
    for name, images in (("parquet:{}/data", 6), ("disk:{}/saved", 3), ("imagefolder:{}/pictures", 2)):
        source = load(tmp_path, name.format(root))
        assert len(source.train.labels) == images
    assert source.class_names == ("std::a", "std::b")


def test_one_split_may_be_both(tmp_path: Path) -> None:
    source = load(tmp_path, write_parquet(tmp_path / "data"), test_split="train")
    assert (source.train.images == source.test.images).all()


def test_only_columns_in_use_are_read(tmp_path: Path) -> None:
    name = write_parquet(tmp_path / "data", table(3), table(3, id=([0, 1, 2], datasets.Value("int64"))))
    odd = pa.array([[("k", 1)]] * 2, pa.map_(pa.string(), pa.int64()))
    parquet.write_table(table(2).data.table.append_column("odd", odd), tmp_path / "data" / "train-1.parquet")
    assert len(load(tmp_path, name).train.labels) == 5


def test_images_of_other_types_in_other_files_are_images(tmp_path: Path) -> None:
    rows = [encoded(picture(i)) for i in range(2)]
    name = write_parquet(tmp_path / "data", table(2))
    for number, kind in enumerate(("binary", "large_binary"), start=1):
        values = ([row["bytes"] for row in rows], datasets.Value(kind))
        table(2, image=values).to_parquet(tmp_path / "data" / f"train-{number}.parquet")
    images = load(tmp_path, name).train.images
    assert (images[0:2] == images[2:4]).all()
    assert (images[0:2] == images[4:6]).all()


@pytest.mark.parametrize(
    ("test", "key", "said"),
    [
        ({"label": None}, "data.label_column", "finds 'label' in split 'train'; allowed, in split 'test': image"),
        ({"label": ([-1] * 6, LABELS)}, "data.test_split", "is 'test', where 'label' contains only -1"),
        ({"label": ([None] * 6, LABELS)}, "data.test_split", "is 'test', where 'label' contains only -1"),
        ({"image": ([1] * 6, datasets.Value("int64"))}, "data.image_column", "contains no images in split 'test'"),
    ],
)
def test_a_split_without_what_is_needed_is_named(tmp_path: Path, test: dict[str, Any], key: str, said: str) -> None:
    for source in (write_parquet(tmp_path / "data", table(), table(**test)), f"disk:{tmp_path / 'saved'}"):
        if source.startswith("disk"):
            datasets.DatasetDict({"train": table(), "test": table(**test)}).save_to_disk(tmp_path / "saved")
        error = refusal(tmp_path, source)
        assert error.key == key
        assert said in str(error)


def test_a_part_without_the_label_column_is_named(tmp_path: Path) -> None:
    name = write_parquet(tmp_path / "data")
    table(2, label=None).to_parquet(tmp_path / "data" / "train-00001.parquet")
    assert "allowed, in split 'train', train-00001.parquet: image" in str(refusal(tmp_path, name))


# ------------------------------------------------------------------------------------------------ imagefolder


def test_every_file_of_a_class_becomes_an_image(tmp_path: Path) -> None:
    name = folders(
        tmp_path, "train/a/0.png", "train/a/1.PNG", "train/a/2.JPeG", "train/b/3.png", "test/a/0.png", "test/b/0.png"
    )
    picture(4).save(tmp_path / "train/a/plain", "PNG")
    kinds = {"a": 4, "b": 1}
    if ".avif" in Image.registered_extensions():
        picture(5).save(tmp_path / "train/a/5.avif")
        kinds["a"] += 1
    for left in (".DS_Store", "Thumbs.db", "desktop.ini", "._0.png"):
        (tmp_path / "train/a" / left).write_bytes(b"\0")
    (tmp_path / "train/a/@eaDir").mkdir()
    (tmp_path / "train/a/@eaDir/0.png").write_bytes(b"\0")
    (tmp_path / "train/.git").mkdir()
    (tmp_path / "train/.git/HEAD").write_text("ref")
    assert counts(load(tmp_path, name)) == kinds


@pytest.mark.parametrize(
    "left", ["notes.txt", "IMG_1.HEIC", "metadata.csv", "more.zip", "more/metadata.jsonl", "plain"]
)
def test_the_first_file_of_a_class_that_is_no_image_is_named(
    tmp_path: Path, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = folders(tmp_path / "data")
    (tmp_path / "data/train/a" / left).parent.mkdir(exist_ok=True)
    (tmp_path / "data/train/a" / left).write_bytes(b"\0\0\0\x18ftypheic")
    monkeypatch.setattr("kaizen.data.images.decode_image", lambda row: pytest.fail("decoded"))
    error = refusal(tmp_path, name)
    assert error.key == "data.source"
    assert f"train/a/{left} is " in str(error)


def test_what_lies_outside_of_classes_is_noted_and_changes_nothing(tmp_path: Path) -> None:
    name = folders(tmp_path)
    for file in ("train/metadata.csv", "test/more.zip"):
        (tmp_path / file).write_text("file_name,label\na/0.png,q\n")
    (tmp_path / "train/empty").mkdir()
    source = load(tmp_path, name)
    assert source.class_names == ("a", "b")
    assert source.notes == ("train/metadata.csv", "train/empty/ (no image)", "test/more.zip")


def test_a_class_that_is_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    name = folders(tmp_path / "data")
    (tmp_path / "data/train/c").symlink_to(tmp_path / "nowhere")
    assert "train/c" in str(refusal(tmp_path, name))
