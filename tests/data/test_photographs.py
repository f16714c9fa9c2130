"""The photographs of uneven size that other tests and measurements are made with."""

from pathlib import Path

import numpy as np
import photographs
import pytest
from PIL import Image, JpegImagePlugin
from pyarrow import parquet
from small_sources import load, no_hub

__all__ = ["no_hub"]  # a fixture of every test here
SMALL = {"least": 12, "most": 40, "classes": 4}


def test_folders_and_parquet_hold_the_same_images(tmp_path: Path) -> None:
    pair = [photographs.write(tmp_path / str(kind), 50, kind, **SMALL) for kind in (False, True)]
    assert [source.partition(":")[0] for source in pair] == ["imagefolder", "parquet"]
    folders, table = (load(tmp_path, source, image_size=8) for source in pair)
    assert folders.class_names == table.class_names
    assert (len(table.train.labels), len(table.test.labels)) == (40, 10)
    assert sorted(folders.train.labels) == sorted(table.train.labels)
    order = np.argsort(table.train.labels, kind="stable")
    assert np.array_equal(folders.train.images, table.train.images[order])
    assert parquet.ParquetFile(tmp_path / "True" / "train.parquet").num_row_groups == 4


def test_a_seed_gives_the_same_images_however_many(tmp_path: Path) -> None:
    for name, count, seed in (("a", 40, 0), ("b", 60, 0), ("c", 40, 1)):
        photographs.write(tmp_path / name, count, seed=seed, **SMALL)
    files = [file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*.jpg")]
    assert len(files) == 40
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    assert all((tmp_path / "a" / file).read_bytes() != (tmp_path / "c" / file).read_bytes() for file in files)


def test_files_are_as_uneven_as_they_should_be(tmp_path: Path) -> None:
    photographs.write(tmp_path, 200, **SMALL)
    images = [Image.open(file) for file in tmp_path.rglob("*.jpg")]
    for image in images:
        assert 12 <= min(image.size) <= max(image.size) <= min(40, 2 * min(image.size))
    assert len({image.size for image in images}) > 100
    assert {image.mode for image in images} == {"RGB", "L"}
    assert {JpegImagePlugin.get_sampling(image) for image in images if image.mode == "RGB"} == {0, 2}
    assert len({image.getexif().get(Image.ExifTags.Base.Orientation, 1) for image in images}) == 8


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="10 classes, 16 images to train and 4 to test; allowed: each class in both"):
        photographs.write(tmp_path, 20)
    with pytest.raises(ValueError, match="least is 50 and most is 40; allowed"):
        photographs.write(tmp_path, 20, least=50, most=40)
