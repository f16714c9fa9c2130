"""Sources: the files that are read and their decoding."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from small_sources import encoded, load, no_hub, picture, refusal, table, write_parquet

from kaizen.data import rows as rows_module
from kaizen.data.known import KNOWN_SOURCES

__all__ = ["no_hub"]  # a fixture of every test here


def test_digits_are_the_bundled_ones_cut_evenly_and_always_alike(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    source = load(tmp_path, "digits")
    assert (source.num_classes, source.image_size) == (10, 8)
    assert source.train.images.shape == (1438, 3, 8, 8)
    assert source.test.images.shape == (359, 3, 8, 8)
    for digit in range(10):
        counts = [int((split.labels == digit).sum()) for split in (source.train, source.test)]
        assert abs(counts[1] - sum(counts) / 5) <= 0.5
    levels, labels = load_digits(return_X_y=True)
    expected = sorted((int(y), tuple(np.round(x * 255 / 16).astype(int))) for x, y in zip(levels, labels, strict=True))
    found = [
        (int(y), tuple(x[c].ravel().astype(int)))
        for split in (source.train, source.test)
        for x, y in zip(split.images, split.labels, strict=True)
        for c in (0,)
    ]
    assert sorted(found) == expected
    assert source.train.domains is None
    # The key and the split into tasks are the same on all machines, versions and runs.
    assert source.fingerprint == load(tmp_path, "digits", image_size=8).fingerprint


def test_known_sources_cost_nothing_to_look_up() -> None:
    code = "import sys, kaizen.data.known; print(sorted({'torch', 'datasets', 'sklearn', 'PIL'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
    assert {name: (known.classes, known.image_size) for name, known in KNOWN_SOURCES.items()} == {
        "digits": (10, 8),
        "cifar10": (10, 32),
        "cifar100": (100, 32),
        "imagenet100": (100, 224),
        "imagenet1k": (1000, 224),
        "tinyimagenet": (200, 64),
        "stl10": (10, 96),
        "domainnet": (345, 224),
        "fashion_mnist": (10, 28),
    }


@pytest.mark.parametrize("struct", [False, True])
def test_parquet_gives_pixels_as_pil_reads_them_and_numpys_moments(tmp_path: Path, struct: bool) -> None:
    kind = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")} if struct else datasets.Image()
    train = table(image=([encoded(picture(i)) for i in range(6)], kind))
    test = table(3, 100, image=([encoded(picture(100 + i)) for i in range(3)], kind))
    source = load(tmp_path, write_parquet(tmp_path / "with [brackets] and spaces", train, test))
    expected = np.stack([np.asarray(picture(i)).transpose(2, 0, 1) for i in range(6)])
    assert np.array_equal(source.train.images, expected)
    assert np.array_equal(source.test.images[2], np.asarray(picture(102)).transpose(2, 0, 1))
    assert source.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert source.train.labels.dtype == np.int64
    assert source.class_names == ("cat", "dog", "eel")
    assert isinstance(source.train.images, np.memmap)
    assert not source.train.images.flags.writeable
    scaled = expected.astype(np.float64) / 255
    assert source.mean == pytest.approx(scaled.mean((0, 2, 3)), rel=1e-12)
    assert source.std == pytest.approx(scaled.std((0, 2, 3)), rel=1e-12)


@pytest.mark.parametrize("kind", ["bytes alone", "paths alone", "paths as strings"])
def test_a_declared_image_may_be_stored_in_part_or_as_a_path(kind: str, tmp_path: Path) -> None:
    files = [str(tmp_path / f"{number}.png") for number in range(6)]
    for number, file in enumerate(files):
        picture(number).save(file)
    if kind == "bytes alone":
        held = pa.array([{"bytes": Path(file).read_bytes()} for file in files])
    else:
        held = pa.array([{"path": file} for file in files] if kind == "paths alone" else files)
    name = write_parquet(tmp_path / "data")
    file = tmp_path / "data" / "train-00000.parquet"
    whole = parquet.read_table(file)
    parquet.write_table(whole.set_column(0, "image", held).replace_schema_metadata(whole.schema.metadata), file)
    assert np.array_equal(
        load(tmp_path, name).train.images, load(tmp_path, write_parquet(tmp_path / "whole")).train.images
    )


def test_keys_of_the_wrong_type_are_named(tmp_path: Path) -> None:
    assert refusal(tmp_path, "digits", image_size=2).key == "data.image_size"


def test_moments_and_order_hold_over_several_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "CHUNK_BYTES", 3 * 8 * 8 * 4)
    source = load(tmp_path, write_parquet(tmp_path / "data", table(11)))
    expected = np.stack([np.asarray(picture(i)).transpose(2, 0, 1) for i in range(11)])
    assert np.array_equal(source.train.images, expected)
    assert source.std == pytest.approx((expected / 255.0).std((0, 2, 3)), rel=1e-12)


def test_imagefolder_takes_classes_of_both_splits_from_directories(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    for place, seed in (("train/b", 0), ("train/a", 1), ("train/a", 2), ("test/c", 3), ("test/b", 4)):
        (root / place).mkdir(parents=True, exist_ok=True)
        picture(seed).save(root / place / f"{seed}.png")
    (root / "train" / "empty").mkdir()
    (root / "train" / "hidden").mkdir()
    (root / "train" / "hidden" / ".DS_Store").write_bytes(b"")
    source = load(tmp_path, f"imagefolder:{root}")
    assert source.class_names == ("a", "b", "c")
    assert sorted(source.train.labels.tolist()) == [0, 0, 1]
    assert sorted(source.test.labels.tolist()) == [1, 2]
    row = source.train.labels.tolist().index(1)
    assert np.array_equal(source.train.images[row], np.asarray(picture(0)).transpose(2, 0, 1))


def test_imagefolder_with_linked_classes_and_one_class(tmp_path: Path) -> None:
    (tmp_path / "all" / "a").mkdir(parents=True)
    picture(0).save(tmp_path / "all" / "a" / "0.png")
    for split in ("train", "test"):
        (tmp_path / "subset" / split).mkdir(parents=True)
        (tmp_path / "subset" / split / "a").symlink_to(tmp_path / "all" / "a")
    source = load(tmp_path, f"imagefolder:{tmp_path / 'subset'}")
    assert source.class_names == ("a",)
    assert len(source.train.labels) == 1


def test_disk_reads_a_saved_dict_with_other_split_names(tmp_path: Path) -> None:
    datasets.DatasetDict({"fit": table(), "val": table(3, 100)}).save_to_disk(tmp_path / "saved")
    source = load(tmp_path, f"disk:{tmp_path / 'saved'}", train_split="fit", test_split="val")
    assert (len(source.train.labels), len(source.test.labels)) == (6, 3)
    error = refusal(tmp_path / "other", f"disk:{tmp_path / 'saved'}")
    assert error.key == "data.train_split"
    assert "fit" in str(error)
    assert "val" in str(error)


def test_hub_name_and_columns_of_known_and_other_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fake(path: str, **options: str) -> datasets.DatasetDict:
        asked.append((path, options))
        part = table().rename_columns({"image": "img", "label": "fine_label"})
        return datasets.DatasetDict({"train": part.add_column("coarse_label", [0] * 6), "test": part})

    monkeypatch.setattr(datasets, "load_dataset", fake)
    monkeypatch.setattr(
        datasets, "load_dataset_builder", lambda path, **options: SimpleNamespace(name="json", config=None)
    )
    known, other = load(tmp_path, "cifar100"), load(tmp_path, "hub:some/one", config="c1", revision="v2")
    assert asked == [("uoft-cs/cifar100", {}), ("some/one", {"name": "c1", "revision": "v2"})]
    assert (known.image_size, other.image_size) == (32, 8)
    assert known.train.labels.tolist() == other.train.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_domains_and_labels_as_strings_integers_and_nulls(tmp_path: Path) -> None:
    text, number = datasets.Value("string"), datasets.Value("int32")
    train = table(3, label=(["x", None, "b"], text), domain=([2, 0, 1], number), place=(["s", "r", "s"], text))
    test = table(2, label=(["a", "b"], text), domain=([3, 3], number), place=(["q", "r"], text))
    name = write_parquet(tmp_path / "data", train, test)
    source = load(tmp_path, name, domain_column="domain")
    assert source.class_names == ("a", "b", "x")
    assert source.train.labels.tolist() == [2, -1, 1]
    assert source.train.domains is not None
    assert source.train.domains.tolist() == [2, 0, 1]
    assert source.domain_names == ("0", "1", "2", "3")
    source = load(tmp_path, name, domain_column="place", label_column="domain")
    assert source.domain_names == ("q", "r", "s")
    assert source.test.domains is not None
    assert source.test.domains.tolist() == [0, 1]
    assert source.num_classes == 4
