"""Images of any kind become the pixels that the data path stores."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_sources import picture

from kaizen.data.source import load_source
from kaizen.errors import ConfigError
from kaizen.takeaway.pictures import each, pixels_of


def odd_images(folder: Path) -> list[Path]:
    """Files of many modes, depths, sizes and orientations, in the order of their names."""
    folder.mkdir(parents=True)
    deep = Image.fromarray(np.random.default_rng(7).integers(0, 65536, (9, 9), dtype=np.uint16))
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(0, (20, 12)).save(folder / "a.png")
    picture(1, (12, 20), "L").save(folder / "b.png")
    picture(2, (9, 9), "RGBA").save(folder / "c.png")
    picture(3).convert("P").save(folder / "d.gif")
    picture(4).convert("CMYK").save(folder / "e.jpg")
    picture(5, (12, 8)).save(folder / "f.jpg", exif=turned)
    deep.save(folder / "g.png")
    picture(6).convert("1").save(folder / "h.png")
    picture(8, (400, 8)).save(folder / "i.png")
    deep.save(folder / "j.tif")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("background", ["white", "black"])
def test_pixels_are_those_of_the_data_path(background: str, tmp_path: Path, cache: str) -> None:
    files = odd_images(tmp_path / "train/thing")
    odd_images(tmp_path / "test/thing")
    keys = {"image_size": 8, "background": background, "cache_dir": cache}
    stored = load_source(f"imagefolder:{tmp_path}", store="pixels", **keys).test.images
    encoded = load_source(f"imagefolder:{tmp_path}", store="files", resize=10, **keys).test.images
    for number, (file, expected) in enumerate(zip(files, stored[np.arange(len(files))], strict=True)):
        (square,) = encoded[np.array([number])]
        assert np.array_equal(pixels_of(file, 8, background, resize=10), square), file.name
        with Image.open(file) as image:
            assert np.array_equal(pixels_of(image, 8, background, resize=10), square), file.name
        assert np.array_equal(pixels_of(file, 8, background), expected), file.name
        assert np.array_equal(pixels_of(str(file), 8, background), expected), file.name
        with Image.open(file) as image:
            before = image.size
            assert np.array_equal(pixels_of(image, 8, background), expected), file.name
            assert image.size == before, "the caller's image stays as it is"


def test_arrays_and_tensors_are_the_same_images() -> None:
    for mode in ("RGB", "L", "RGBA"):
        image = picture(0, (12, 10), mode)
        expected, levels = pixels_of(image, 8, "white"), np.asarray(image)
        assert np.array_equal(pixels_of(levels, 8, "white"), expected)
        if mode == "L":
            assert np.array_equal(pixels_of(levels[:, :, None], 8, "white"), expected)
            assert np.array_equal(pixels_of(torch.tensor(levels), 8, "white"), expected)
            levels = levels[:, :, None]
        tensor = torch.tensor(levels).permute(2, 0, 1)
        assert np.array_equal(pixels_of(tensor, 8, "white"), expected)
        for dtype in (torch.float32, torch.float64):
            assert np.array_equal(pixels_of(tensor.to(dtype) / 255, 8, "white"), expected)


def test_one_picture_and_several_are_told_apart() -> None:
    image = picture(0)
    levels = np.asarray(image)
    tensor = torch.tensor(levels).permute(2, 0, 1)
    for one in (image, levels, levels[:, :, 0], tensor, tensor[0], "a.png", Path("a.png")):
        assert len(list(each(one))) == 1
        assert len(list(each([one, one]))) == 2
        assert len(list(each(one for _ in range(3)))) == 3
    assert [part.shape for part in each(np.stack([levels] * 4))] == [levels.shape] * 4
    assert len(list(each(tensor[None]))) == 1


BAD = {
    "floats": (np.zeros((8, 8, 3)), "float64"),
    "channels first": (np.zeros((3, 8, 8), np.uint8), "of shape (3, 8, 8)"),
    "channels last": (torch.zeros(8, 8, 3), "a tensor of shape (8, 8, 3)"),
    "normalised": (torch.full((3, 8, 8), -0.5), "outside 0..1"),
    "integers": (torch.zeros(3, 8, 8, dtype=torch.int64), "int64"),
    "empty": (np.zeros((0, 8, 3), np.uint8), "of shape (0, 8, 3)"),
    "number": (7, "a value of type int"),
    "missing": ("/no/such.png", "/no/such.png: cannot be read (No such file or directory)"),
    "a directory": ("/", "/: cannot be read (Is a directory)"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_image_is_named(case: str) -> None:
    bad, said = BAD[case]
    with pytest.raises(ConfigError) as caught:
        pixels_of(bad, 8, "white", 3)  # type: ignore[arg-type]
    assert said in str(caught.value)
    assert isinstance(bad, str) or "images: number 3: cannot be read" in str(caught.value)


def test_what_is_neither_a_picture_nor_several_is_refused() -> None:
    for bad in (7, b"bytes", None):
        with pytest.raises(ConfigError, match="images: are of type"):
            list(each(bad))  # type: ignore[arg-type]
