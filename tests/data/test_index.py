"""The index of images that stay encoded: built once, the same for every kind of source, and never out of date."""

import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from photographs import jpeg
from PIL import Image
from small_sources import LABELS, encoded, load, load_images, no_hub, picture, refusal, write_parquet

from kaizen.data import index
from kaizen.data.encoded import Encoded
from kaizen.data.splits import Source
from kaizen.errors import ConfigError

__all__ = ["no_hub"]
FILES = {"store": "files", "image_size": 16}


def photos(count: int, first: int = 0) -> list[bytes]:
    """JPEGs and PNGs of many sizes."""
    sizes = [(20 + 3 * i, 50 - 2 * i) for i in range(first, first + count)]
    pictures = [picture(i, size) for i, size in enumerate(sizes, first)]
    return [jpeg(one) if i % 2 else encoded(one)["bytes"] for i, one in enumerate(pictures)]


def splits() -> datasets.DatasetDict:
    features = datasets.Features({"image": datasets.Image(), "label": LABELS})
    held = {"train": (9, 0), "test": (3, 9)}
    return datasets.DatasetDict(
        {
            name: datasets.Dataset.from_dict(
                {
                    "image": [{"bytes": one, "path": None} for one in photos(count, first)],
                    "label": [i % 3 for i in range(count)],
                },
                features=features,
            )
            for name, (count, first) in held.items()
        }
    )


def written(kind: str, folder: Path) -> str:
    """The same images in the same order, as a source of that kind."""
    if kind == "disk":
        splits().save_to_disk(folder)
    elif kind == "parquet":
        write_parquet(folder, splits()["train"], splits()["test"])
    else:
        for split, rows in splits().cast_column("image", datasets.Image(decode=False)).items():
            for number, row in enumerate(rows):
                place = folder / split / LABELS.names[row["label"]]
                place.mkdir(parents=True, exist_ok=True)
                (place / f"{number}.jpg").write_bytes(row["image"]["bytes"])
    return f"{kind}:{folder}"


def sorted_squares(source: Source) -> list[tuple[int, bytes]]:
    images = source.train.images[np.arange(len(source.train.labels))]
    return sorted((int(label), image.tobytes()) for label, image in zip(source.train.labels, images, strict=True))


@pytest.mark.parametrize("kind", ["imagefolder", "disk", "parquet"])
def test_every_kind_of_source_gives_the_same_images_and_copies_only_parquet(tmp_path: Path, kind: str) -> None:
    found = load(tmp_path, written(kind, tmp_path / "data"), **FILES)
    usual = load(tmp_path / "usual", written("disk", tmp_path / "other"), **FILES)
    assert sorted_squares(found) == sorted_squares(usual)
    assert (found.mean, found.std) == (usual.mean, usual.std)
    copies = {path.name for path in (tmp_path / "cache").rglob("*.images")}
    assert copies == ({"train.images", "test.images"} if kind == "parquet" else set())
    assert (found.store, found.resize) == ("files", 18)


def fail(*arguments: Any) -> None:
    raise AssertionError("images were looked at again")


def test_an_index_is_built_once_for_all_sizes_and_moves_with_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(tmp_path, written("imagefolder", tmp_path / "data"), **FILES)
    squares = sorted_squares(first)
    monkeypatch.setattr(index, "measured", fail)
    shutil.move(tmp_path / "data", tmp_path / "moved")
    again = load(tmp_path, f"imagefolder:{tmp_path}/moved", **FILES)
    assert again.digest() == first.digest()
    assert sorted_squares(again) == squares
    smaller = load(tmp_path, f"imagefolder:{tmp_path}/moved", store="files", image_size=8, resize=11)
    assert (smaller.image_size, smaller.resize) == (8, 11)
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("kind", ["imagefolder", "disk"])
def test_a_changed_file_is_indexed_anew(tmp_path: Path, kind: str) -> None:
    name = written(kind, tmp_path / "data")
    before = load(tmp_path, name, **FILES)
    squares = sorted_squares(before)
    if kind == "disk":
        shutil.rmtree(tmp_path / "data")
        changed = splits()
        changed["train"] = changed["train"].select(range(8))
        changed.save_to_disk(tmp_path / "data")
    else:
        file = sorted((tmp_path / "data/train/cat").iterdir())[0]
        file.write_bytes(jpeg(picture(77, (31, 32))))
    after = load(tmp_path, name, **FILES)
    assert after.digest() != before.digest()
    assert sorted_squares(after) != squares


def test_a_damaged_index_is_built_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = written("imagefolder", tmp_path / "data")
    before = load(tmp_path, name, **FILES)
    (entry,) = (tmp_path / "cache").iterdir()
    table = np.load(entry / "train.places.npy")
    table[0, 0] = 99
    np.save(entry / "train.places.npy", table)
    assert load(tmp_path, name, **FILES).digest() == before.digest()
    assert "are damaged (ValueError: train.places.npy" in capsys.readouterr().err


def test_auto_stores_small_squares_as_pixels_and_leaves_all_others_encoded(tmp_path: Path) -> None:
    small = [encoded(picture(i, (64, 64))) for i in range(4)]
    assert load_images(tmp_path / "a", small, store="auto", image_size=8).store == "pixels"
    for place, odd in enumerate([(65, 65), (64, 63)]):
        rows = [*small, encoded(picture(9, odd))]
        source = load_images(tmp_path / str(place), rows, store="auto", image_size=8)
        assert isinstance(source.train.images, Encoded)
        # Found in the cache by its name, whatever the key says.
        again = load(tmp_path / str(place), f"parquet:{tmp_path}/{place}/data", store="files", image_size=8)
        assert again.fingerprint == source.fingerprint


def test_the_side_is_found_where_all_images_are_squares_of_one(tmp_path: Path) -> None:
    rows = [encoded(picture(i, (80, 80))) for i in range(3)]
    test = datasets.Dataset.from_dict(
        {"image": rows, "label": [0, 1, 2]}, features=datasets.Features({"image": datasets.Image(), "label": LABELS})
    )
    found = load(tmp_path, write_parquet(tmp_path / "data", test, test), store="files")
    assert (found.image_size, found.resize, found.is_size_found) == (80, 91, True)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"store": "files", "resize": 9}, "eval.resize: is 9; allowed: at least 16, the side of the images"),
        ({"store": "files", "resize": None}, "eval.resize: is null; allowed with data.store files: auto, or the sh"),
        ({"store": "pixels", "resize": 18}, "eval.resize: is 18; allowed with data.store pixels, whose images are"),
    ],
)
def test_a_shorter_side_that_does_not_fit_is_refused(tmp_path: Path, keys: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, written("parquet", tmp_path / "data"), image_size=16, **keys)
    assert str(caught.value).startswith(problem)


def test_images_of_several_sizes_ask_for_one_before_they_are_indexed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "measured", fail)
    error = refusal(tmp_path, written("disk", tmp_path / "data"), store="files")
    assert str(error).startswith("data.image_size: is not set, and the images are")


def test_mean_and_std_are_those_of_the_images_levels(tmp_path: Path) -> None:
    levels = [np.full((40, 60, 3), level, np.uint8) for level in (10, 200)]
    rows = [encoded(Image.fromarray(one)) for one in levels]
    found = load_images(tmp_path, rows, **FILES)
    assert (*found.mean, *found.std) == pytest.approx((*[105 / 255] * 3, *[95 / 255] * 3))


def test_an_index_of_small_squares_is_not_taken_where_the_store_is_open(tmp_path: Path) -> None:
    small = [encoded(picture(i, (32, 32))) for i in range(4)]
    name = load_images(tmp_path, small, store="files", image_size=8)
    assert name.store == "files"
    assert load(tmp_path, f"parquet:{tmp_path}/data", store="auto", image_size=8).store == "pixels"


@pytest.mark.parametrize("place", ["img", "data/img"])
def test_files_that_rows_name_are_followed_and_found_changed(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(place).mkdir(parents=True)
    names = [f"{place}/{i}.jpg" for i in range(3)]
    for number, name in enumerate(names):
        Path(name).write_bytes(jpeg(picture(number, (30, 20))))
    Path(names[2]).write_bytes(b"not yet an image")
    rows = [{"bytes": None, "path": name} for name in names]
    features = datasets.Features(
        {"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}, "label": LABELS}
    )
    table = datasets.Dataset.from_dict({"image": rows, "label": [0, 1, 2]}, features=features)
    source = write_parquet(tmp_path / "data", table, table)
    first = load(tmp_path, source, broken="skip", **FILES)
    monkeypatch.chdir("/")
    assert first.train.images[np.arange(2)].shape == (2, 3, 16, 16)
    monkeypatch.chdir(tmp_path)
    Path(names[2]).write_bytes(jpeg(picture(7, (30, 20))))  # mended
    again = load(tmp_path, source, broken="skip", **FILES)
    assert len(again.train.images) == 3
    Path(names[0]).write_bytes(jpeg(picture(8, (31, 20))))
    assert load(tmp_path, source, broken="skip", **FILES).digest() != again.digest()


def test_a_run_reads_on_where_its_cache_is_cleared(tmp_path: Path) -> None:
    found = load(tmp_path, written("parquet", tmp_path / "data"), **FILES)
    shutil.rmtree(tmp_path / "cache")
    assert found.test.images[np.arange(3)].shape == (3, 3, 16, 16)


def test_a_shared_file_that_is_cut_short_is_an_error_and_no_crash(tmp_path: Path) -> None:
    found = load(tmp_path, written("disk", tmp_path / "data"), **FILES)
    (file,) = (tmp_path / "data/train").glob("*.arrow")
    with file.open("r+b") as opened:
        opened.truncate(100)
    with pytest.raises(ConfigError, match=r"arrow, row \d+: image can no longer be read \(it has 0 bytes"):
        _ = found.train.images[np.arange(9)]
