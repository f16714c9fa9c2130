"""Sources: errors, each with one line that contains the reason."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import httpx
import numpy as np
import pytest
from huggingface_hub.errors import GatedRepoError
from PIL import Image
from pyarrow import parquet
from small_sources import LABELS, encoded, load, no_hub, picture, refusal, table, write_parquet

__all__ = ["no_hub"]  # a fixture of every test here


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("cifar01", "did you mean 'cifar10'"),
        ("parque:/x", "did you mean 'parquet:DIR'"),
        (
            "nothing at all",
            "allowed: digits, cifar10, cifar100, imagenet100, imagenet1k, tinyimagenet, stl10, domainnet, "
            "fashion_mnist, hub:OWNER/NAME",
        ),
        ("hub:name", "allowed: hub:OWNER/NAME"),
        ("disk:", "allowed: disk:DIR"),
        ("parquet:/no/such/place", "/no/such/place is not a directory"),
        ("imagefolder:/no/such/place", "/no/such/place is not a directory"),
        ("disk:/no/such/place", "/no/such/place is not a directory"),
    ],
)
def test_sources_that_do_not_exist(tmp_path: Path, source: str, said: str) -> None:
    error = refusal(tmp_path, source)
    assert error.key == "data.source"
    assert said in str(error)


def test_missing_splits_name_what_is_there(tmp_path: Path) -> None:
    name = write_parquet(tmp_path / "data")
    (tmp_path / "data" / "test.parquet").rename(tmp_path / "data" / "held.parquet")
    error = refusal(tmp_path, name)
    assert error.key == "data.test_split"
    assert "held.parquet" in str(error)
    assert "train-00000.parquet" in str(error)
    (tmp_path / "pictures" / "train" / "a").mkdir(parents=True)
    assert refusal(tmp_path, f"imagefolder:{tmp_path / 'pictures'}").key == "data.train_split"
    error = refusal(tmp_path, "digits", test_split="validation")
    assert str(error) == "data.test_split: is 'validation'; allowed, the splits of digits: train, test"


def test_directories_that_hold_something_else(tmp_path: Path) -> None:
    table().save_to_disk(tmp_path / "single" / "train")
    table().save_to_disk(tmp_path / "single" / "test")
    assert refusal(tmp_path, f"disk:{tmp_path / 'single'}").key == "data.source"
    name = write_parquet(tmp_path / "data")
    (tmp_path / "data" / "test.parquet").write_bytes(b"not a table")
    error = refusal(tmp_path, name)
    assert error.key == "data.source"
    assert "cannot be read" in str(error)


def test_empty_splits(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": table(), "test": table(0)}).save_to_disk(tmp_path / "saved")
    error = refusal(tmp_path, f"disk:{tmp_path / 'saved'}")
    assert str(error) == "data.test_split: is 'test', which contains no images"
    name = write_parquet(tmp_path / "data")
    parquet.write_table(table(1).data.table.slice(0, 0), tmp_path / "data" / "train-00000.parquet")
    assert str(refusal(tmp_path, name)) == "data.train_split: is 'train', which contains no images"
    table().to_parquet(tmp_path / "data" / "train-00001.parquet")
    assert len(load(tmp_path, name).train.labels) == 6


@pytest.mark.parametrize(
    ("columns", "options", "key", "said"),
    [
        ({}, {"image_column": "img"}, "data.image_column", "'img'; allowed, in split 'train': image (PIL"),
        ({}, {"image_column": "label"}, "data.image_column", "contains no images"),
        ({}, {"label_column": "y"}, "data.label_column", "label (ClassLabel)"),
        ({}, {"domain_column": "d"}, "data.domain_column", "label (ClassLabel)"),
        ({"more": ([None] * 6, datasets.Image())}, {}, "data.image_column", "2 columns qualify"),
        ({"image": ([1] * 6, datasets.Value("int64"))}, {}, "data.image_column", "image (int64)"),
        ({"label": None}, {}, "data.label_column", "no column qualifies"),
        ({"label": ([0.5] * 6, datasets.Value("float32"))}, {}, "data.label_column", "has float32"),
        ({"label": ([[1]] * 6, datasets.List(datasets.Value("int64")))}, {}, "data.label_column", "has List"),
        ({"label": ([0, 1, -2, 0, 0, 0], datasets.Value("int8"))}, {}, "data.label_column", "row 2: found -2"),
        ({"label": ([10**12] * 6, datasets.Value("int64"))}, {}, "data.label_column", "row 0: found 1000000000000"),
        ({"label": ([2**63 - 1] * 6, datasets.Value("uint64"))}, {}, "data.label_column", "row 0: found 9223"),
        ({"d": ([0, -1, 0, 0, 0, 0], datasets.Value("int8"))}, {"domain_column": "d"}, "data.domain_column", "row 1"),
    ],
)
def test_columns_that_cannot_be_used(
    tmp_path: Path, columns: dict[str, Any], options: dict[str, str], key: str, said: str
) -> None:
    error = refusal(tmp_path, write_parquet(tmp_path / "data", table(**columns), table(**columns)), **options)
    assert error.key == key
    assert said in str(error)


def test_labels_beyond_the_class_names_name_row_and_value(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": LABELS})
    raw = table(3, label=([0, 7, 1], datasets.Value("int64"))).data.table
    bad = datasets.Dataset(raw.replace_schema_metadata(None), info=datasets.DatasetInfo(features=features))
    error = refusal(tmp_path, write_parquet(tmp_path / "data", bad))
    assert str(error) == "data.label_column: 'label', split 'train', row 1: found 7; allowed: -1 to 2"


def test_splits_without_any_label(tmp_path: Path) -> None:
    none = table(2, label=([-1, -1], datasets.Value("int64")))
    assert "contains only -1" in str(refusal(tmp_path, write_parquet(tmp_path / "data", none, none)))


def test_unreadable_and_missing_images_name_split_and_row(tmp_path: Path) -> None:
    whole = encoded(picture(0, (64, 64)))
    float_image = encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF")
    broken = bytearray(whole["bytes"])
    broken[37:41] = b"\xff\xff\xff\xff"
    for bad in (None, {"bytes": b"junk", "path": None}, {"bytes": whole["bytes"][:300], "path": None}, float_image):
        train = table(3, image=([whole, whole, bad], datasets.Image()))
        error = refusal(tmp_path, write_parquet(tmp_path / "data", train), image_size=8)
        assert error.key == "data.source"
        assert "split 'train', row 2: image cannot be read" in str(error)


def test_first_image_that_is_no_square_asks_for_a_size(tmp_path: Path) -> None:
    rows = [encoded(picture(0, (9, 8)))]
    name = write_parquet(tmp_path / "data", table(1, image=(rows, datasets.Image())))
    error = refusal(tmp_path, name)
    assert error.key == "data.image_size"
    assert "9 x 8" in str(error)


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (ConnectionError("Couldn't reach 'uoft-cs/cifar100' on the Hub"), "HF_HUB_OFFLINE=1"),
        (datasets.exceptions.DatasetNotFoundError("doesn't exist on the Hub"), "was not found: doesn't exist"),
        (FileNotFoundError("no data\nfile"), "was not found: no data file"),
        (RuntimeError("Dataset scripts are no longer supported"), "scripts are no longer supported"),
        (ValueError("Config name is missing"), "Config name is missing"),
    ],
)
def test_hub_failures_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, said: str
) -> None:
    def fail(name: str, **options: str) -> None:
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", fail)
    error = refusal(tmp_path, "cifar100")
    assert error.key == "data.source"
    assert said in str(error)


def test_a_gated_set_says_how_to_get_access(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = httpx.Response(403, request=httpx.Request("GET", "https://huggingface.co"))
    refused = GatedRepoError("403 Client Error: access is restricted", response=answer)
    wrapped = datasets.exceptions.DatasetGenerationError("An error occurred")
    wrapped.__cause__ = refused
    missing = datasets.exceptions.DatasetNotFoundError("Dataset 'x/y' is a gated dataset on the Hub.")
    for raised in (refused, wrapped, missing):
        monkeypatch.setattr(datasets, "load_dataset", lambda name, raised=raised: (_ for _ in ()).throw(raised))
        error = refusal(tmp_path, "imagenet1k")
        assert error.key == "data.source"
        assert "https://huggingface.co/datasets/ILSVRC/imagenet-1k and log in with `hf auth login`" in str(error)
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("options", "key", "said"),
    [
        ({}, "data.config", "is null; allowed, of hub:own/set: c1, c2, as in --data.config c1"),
        ({"config": "c3"}, "data.config", "is 'c3'; allowed, of hub:own/set: c1, c2, as in --data.config c1"),
        ({"config": "c2", "test_split": "validation"}, "data.test_split", "the splits of hub:own/set: train, test"),
    ],
)
def test_a_configuration_of_a_hub_source_is_asked_for_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], key: str, said: str
) -> None:
    root = tmp_path / "own" / "set"
    for config in ("c1", "c2"):
        write_parquet(root / config)
    parts = "[{split: train, path: %s/train*}, {split: test, path: %s/test*}]"
    files = "".join(f"- {{config_name: {c}, data_files: {parts % (c, c)}}}\n" for c in ("c1", "c2"))
    (root / "README.md").write_text(f"---\nconfigs:\n{files}---\n")
    _local_hub(tmp_path, monkeypatch)
    error = refusal(tmp_path, "hub:own/set", **options)
    assert error.key == key
    assert said in str(error)
    assert len(load(tmp_path, "hub:own/set", config="c1").train.labels) == 6


def _local_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library takes OWNER/NAME for a directory if it exists."""
    monkeypatch.chdir(folder)
    for name in ("load_dataset", "load_dataset_builder"):
        loader = partial(getattr(datasets, name), cache_dir=str(folder / "kept"))
        monkeypatch.setattr(datasets, name, loader)


def test_files_of_the_hub_that_number_classes_differently_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"train": ["cat", "dog"], "test": ["dog", "cat"]}
    tables = {split: table(2, label=([0, 1], datasets.ClassLabel(names=names))) for split, names in named.items()}
    write_parquet(tmp_path / "own" / "set", **tables)
    _local_hub(tmp_path, monkeypatch)
    assert "numbers the classes of 'label' differently" in str(refusal(tmp_path, "hub:own/set"))


def test_configurations_in_an_offline_cache_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "There are multiple 'own/set' configurations in the cache: c1, c2\nPlease specify which one"
    monkeypatch.setattr(datasets, "load_dataset", lambda name: (_ for _ in ()).throw(ValueError(said)))
    assert "allowed, of hub:own/set: c1, c2, as" in str(refusal(tmp_path, "hub:own/set"))


@pytest.mark.parametrize("key", ["config", "revision"])
def test_keys_of_the_hub_are_refused_elsewhere(tmp_path: Path, key: str) -> None:
    assert str(refusal(tmp_path, "digits", **{key: "x"})) == f"data.{key}: is 'x'; allowed for digits: null"


def test_cache_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    name = write_parquet(tmp_path / "data")
    for place in ("file", "file/below"):
        assert refusal(tmp_path, name, cache_dir=str(tmp_path / place)).key == "data.cache_dir"


@pytest.mark.parametrize("place", ["train/stray.png", "train/a/more/1.png", "test/a/more/deep/1.PNG"])
def test_images_that_stand_in_no_class_are_named(tmp_path: Path, place: str) -> None:
    root = tmp_path / "pictures"
    for file in ("train/a/0.png", "test/a/0.png", place):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        picture(0).save(root / file, "PNG")
    error = refusal(tmp_path, f"imagefolder:{root}")
    assert error.key == "data.source"
    assert f"{place} is not in {place.split('/')[0]}/CLASS/" in str(error)


def test_a_class_that_cannot_be_read_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, scandir = tmp_path / "pictures", os.scandir
    for file in ("train/a/0.png", "train/b/0.png", "test/a/0.png"):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        picture(0).save(root / file)

    def refusing(place: Any = ".") -> Any:
        if str(place).endswith("train/b"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", refusing)
    error = refusal(tmp_path, f"imagefolder:{root}")
    assert error.key == "data.source"
    assert "Permission denied" in str(error)
