"""Sources: what is read, how it is decoded, what is refused, and a cache that is complete or absent."""

import io
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from kaizen.data import images as images_module
from kaizen.data import store
from kaizen.data.source import KNOWN_SOURCES, Source, load_source
from kaizen.errors import ConfigError

LABELS = datasets.ClassLabel(names=["cat", "dog", "eel"])


@pytest.fixture(scope="module", autouse=True)
def _no_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of these tests is left in the user's home, and nothing of it is read."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(home))
        patch.setenv("HF_DATASETS_CACHE", str(home / "datasets"))
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
        yield
        assert not (home / "datasets").exists(), "a source was converted outside its own cache"


def picture(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    levels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    return Image.fromarray(levels)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def table(count: int = 6, first: int = 0, **columns: Any) -> datasets.Dataset:
    """A small split with image and label; a column given as (values, feature) is added or takes their place."""
    held: dict[str, Any] = {
        "image": ([encoded(picture(first + i)) for i in range(count)], datasets.Image()),
        "label": ([i % 3 for i in range(count)], LABELS),
    }
    held = {name: column for name, column in (held | columns).items() if column is not None}
    features = datasets.Features({name: feature for name, (_, feature) in held.items()})
    return datasets.Dataset.from_dict({name: values for name, (values, _) in held.items()}, features=features)


def write_parquet(folder: Path, train: datasets.Dataset | None = None, test: datasets.Dataset | None = None) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (table() if train is None else train).to_parquet(folder / "train-00000.parquet")
    (table(3, 100) if test is None else test).to_parquet(folder / "test.parquet")
    return f"parquet:{folder}"


def load(tmp_path: Path, source: str, **options: Any) -> Source:
    return load_source(source, **({"cache_dir": str(tmp_path / "cache")} | options))


def load_images(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> Source:
    """A parquet source whose training images are the given encoded ones."""
    train = table(len(rows), image=(rows, datasets.Image()))
    return load(tmp_path, write_parquet(tmp_path / "data", train), **options)


def refusal(tmp_path: Path, source: str, **options: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, source, **options)
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "cache").glob("*")], "a refused source left something in the cache"
    return caught.value


# ---------------------------------------------------------------------------------------------- what is read


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
    # The key and the cut stay as they are over machines, versions and runs.
    assert source.fingerprint == load(tmp_path, "digits", image_size=8).fingerprint


def test_known_sources_cost_nothing_to_look_up() -> None:
    code = "import sys, kaizen.data.source; print(sorted({'torch', 'datasets', 'sklearn', 'PIL'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
    assert {name: (known.classes, known.image_size) for name, known in KNOWN_SOURCES.items()} == {
        "digits": (10, 8),
        "cifar10": (10, 32),
        "cifar100": (100, 32),
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


def test_moments_and_order_hold_over_several_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "CHUNK_BYTES", 3 * 8 * 8 * 4)
    source = load(tmp_path, write_parquet(tmp_path / "data", table(11)))
    expected = np.stack([np.asarray(picture(i)).transpose(2, 0, 1) for i in range(11)])
    assert np.array_equal(source.train.images, expected)
    assert source.std == pytest.approx((expected / 255.0).std((0, 2, 3)), rel=1e-12)


def test_imagefolder_takes_classes_of_both_splits_from_directories(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    for place, seed in (("train/b", 0), ("train/a", 1), ("train/a", 2), ("test/c", 3), ("test/b", 4)):
        (root / place).mkdir(parents=True, exist_ok=True)
        picture(seed).save(root / place / f"{seed}.png")
    (root / "train" / "stray.png").write_bytes((root / "train" / "b" / "0.png").read_bytes())
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

    def fake(name: str) -> datasets.DatasetDict:
        asked.append(name)
        part = table().rename_columns({"image": "img", "label": "fine_label"})
        return datasets.DatasetDict({"train": part.add_column("coarse_label", [0] * 6), "test": part})

    monkeypatch.setattr(datasets, "load_dataset", fake)
    known, other = load(tmp_path, "cifar100"), load(tmp_path, "hub:some/one")
    assert asked == ["uoft-cs/cifar100", "some/one"]
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


# ----------------------------------------------------------------------------------------------- how it is decoded


def test_grey_palette_alpha_and_16_bit_become_rgb(tmp_path: Path) -> None:
    grey, alpha = picture(0, mode="L"), picture(1, mode="RGBA")
    palette = picture(2).quantize(16)
    deep = np.random.default_rng(3).integers(0, 65536, (8, 8), dtype=np.uint16)
    deep[0, 0], deep[0, 1] = 0, 65535
    rows = [encoded(image) for image in (grey, alpha, palette, Image.fromarray(deep))]
    rows.append(encoded(Image.fromarray(deep.astype(np.int32)), "TIFF"))
    images = load_images(tmp_path, rows).train.images
    for index, image in enumerate((grey, alpha, palette)):
        assert np.array_equal(images[index], np.asarray(image.convert("RGB")).transpose(2, 0, 1))
    scaled = np.floor(deep / 257 + 0.5).astype(np.uint8)
    assert np.array_equal(images[3], np.stack([scaled] * 3))
    assert np.array_equal(images[4], images[3])


def test_other_sizes_are_resized_by_the_shorter_side_and_cropped(tmp_path: Path) -> None:
    rows = [encoded(picture(0, (8, 8))), encoded(picture(1, (40, 21))), encoded(picture(2, (5, 9)))]
    images = load_images(tmp_path, rows).train.images
    wide = picture(1, (40, 21)).resize((15, 8), Image.Resampling.BICUBIC).crop((3, 0, 11, 8))
    tall = picture(2, (5, 9)).resize((8, 14), Image.Resampling.BICUBIC).crop((0, 3, 8, 11))
    assert np.array_equal(images[1], np.asarray(wide).transpose(2, 0, 1))
    assert np.array_equal(images[2], np.asarray(tall).transpose(2, 0, 1))
    assert load_images(tmp_path, rows, image_size=12).image_size == 12


def test_orientation_in_exif_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 6
    images = load_images(tmp_path, [encoded(picture(0), exif=exif)]).train.images
    assert np.array_equal(images[0], np.asarray(picture(0).rotate(-90)).transpose(2, 0, 1))


# ----------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("cifar01", "did you mean 'cifar10'"),
        ("parque:/x", "did you mean 'parquet:DIR'"),
        ("nothing at all", "allowed: digits, cifar10, cifar100, fashion_mnist, hub:OWNER/NAME, parquet:DIR"),
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
    assert str(error) == "data.test_split: is 'test', which holds no images"
    assert refusal(tmp_path, write_parquet(tmp_path / "data", table(0))).key == "data.train_split"


@pytest.mark.parametrize(
    ("columns", "options", "key", "said"),
    [
        ({}, {"image_column": "img"}, "data.image_column", "'img'; allowed, in split 'train': image (PIL"),
        ({}, {"image_column": "label"}, "data.image_column", "holds no images"),
        ({}, {"label_column": "y"}, "data.label_column", "label (ClassLabel)"),
        ({}, {"domain_column": "d"}, "data.domain_column", "label (ClassLabel)"),
        ({"more": ([None] * 6, datasets.Image())}, {}, "data.image_column", "2 columns could be it"),
        ({"image": ([1] * 6, datasets.Value("int64"))}, {}, "data.image_column", "image (int64)"),
        ({"label": None}, {}, "data.label_column", "no column is known"),
        ({"label": ([0.5] * 6, datasets.Value("float32"))}, {}, "data.label_column", "holds float32"),
        ({"label": ([[1]] * 6, datasets.List(datasets.Value("int64")))}, {}, "data.label_column", "holds List"),
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


def test_splits_without_any_label_or_with_other_names(tmp_path: Path) -> None:
    none = table(2, label=([-1, -1], datasets.Value("int64")))
    assert "holds no value but -1" in str(refusal(tmp_path, write_parquet(tmp_path / "data", none, none)))
    other = table(3, label=([0, 1, 2], datasets.ClassLabel(names=["eel", "dog", "cat"])))
    datasets.DatasetDict({"train": table(), "test": other}).save_to_disk(tmp_path / "saved")
    assert "other class names in split 'test'" in str(refusal(tmp_path, f"disk:{tmp_path / 'saved'}"))


def test_unreadable_and_missing_images_name_split_and_row(tmp_path: Path) -> None:
    whole = encoded(picture(0, (64, 64)))
    float_image = encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF")
    broken = bytearray(whole["bytes"])
    broken[37:41] = b"\xff\xff\xff\xff"
    for bad in (None, {"bytes": b"junk", "path": None}, {"bytes": whole["bytes"][:300], "path": None}, float_image):
        train = table(3, image=([whole, whole, bad], datasets.Image()))
        error = refusal(tmp_path, write_parquet(tmp_path / "data", train))
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
    def fail(name: str) -> None:
        raise raised

    monkeypatch.setattr(datasets, "load_dataset", fail)
    error = refusal(tmp_path, "cifar100")
    assert error.key == "data.source"
    assert said in str(error)


def test_cache_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    name = write_parquet(tmp_path / "data")
    for place in ("file", "file/below"):
        assert refusal(tmp_path, name, cache_dir=str(tmp_path / place)).key == "data.cache_dir"


# ----------------------------------------------------------------------------------------------- the cache


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
    extra = {"other": ([0] * 6, datasets.Value("int64"))}
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

    store.publish = together  # type: ignore[assignment]
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
