"""How encoded images become squares of pixels: modes, depths, transparency, sizes and orientation."""

from io import BytesIO
from pathlib import Path
from typing import Any
from zlib import crc32

import datasets
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from small_sources import encoded, load, load_images, no_hub, picture, refusal, table, write_parquet

from kaizen.data.images import decode_image, square

__all__ = ["no_hub"]  # a fixture of every test here


def _decoded(image: Image.Image, kind: str) -> np.ndarray:
    return np.asarray(decode_image(encoded(image, kind))[0])


def _deep() -> np.ndarray:
    deep = np.random.default_rng(3).integers(0, 65536, (8, 8), dtype=np.uint16)
    deep[0, :3] = 0, 65535, 128
    return deep


def test_grey_palette_opaque_and_16_bit_become_rgb(tmp_path: Path) -> None:
    grey, palette, opaque = picture(0, mode="L"), picture(2).quantize(16), picture(1)
    opaque.putalpha(255)
    rows = [encoded(image) for image in (grey, palette, opaque, Image.fromarray(_deep()))]
    source = load_images(tmp_path, rows)
    for index, image in enumerate((grey, palette, opaque)):
        assert np.array_equal(source.train.images[index], np.asarray(image.convert("RGB")).transpose(2, 0, 1))
    scaled = np.floor(_deep() / 257 + 0.5).astype(np.uint8)
    assert np.array_equal(source.train.images[3], np.stack([scaled] * 3))
    assert source.train.blended == 0


# ------------------------------------------------------------------------------------------------- ranges of levels


def test_every_16_bit_level_is_rounded_to_the_nearest_of_8_bits() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.floor(levels / 257 + 0.5)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(_decoded(Image.fromarray(levels), kind)[..., 0], expected)
    assert np.array_equal(_decoded(Image.fromarray(levels.astype(np.int32)), "PPM")[..., 1], expected), (
        "mode I, 16 bits"
    )


def test_a_file_of_12_bits_is_as_bright_as_one_of_8() -> None:
    levels, packed = [0, 2048, 4095, 4095], bytes([0x00, 0x08, 0x00, 0xFF, 0xFF, 0xFF])
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[256], tags[257], tags[258], tags[259], tags[262], tags[277], tags[278] = 4, 1, 12, 1, 1, 1, 1
    tags[273], tags[279] = 0, len(packed)  # the offset is counted from the end of the tags
    file = BytesIO()
    tags.save(file)
    file.write(packed)
    image, _ = decode_image(file.getvalue())
    assert [pixel[0] for pixel in np.asarray(image)[0].tolist()] == [round(level / 4095 * 255) for level in levels]


def _fits(bits: int) -> bytes:
    """8 x 8 levels in a format whose numbers are signed and scaled by its header."""
    cards = {"SIMPLE": "T", "BITPIX": bits, "NAXIS": 2, "NAXIS1": 8, "NAXIS2": 8}
    header = "".join(f"{name:8}= {value:>20}".ljust(80) for name, value in cards.items()) + "END"
    return header.ljust(2880).encode() + bytes(2880)


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (encoded(Image.fromarray(np.zeros((8, 8), np.int32)), "TIFF"), "32-bit"),
        (encoded(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"), "floating-point"),
        (encoded(Image.fromarray(np.zeros((8, 8), np.uint8)), "TIFF", tiffinfo={339: 2}), "signed"),
        (_fits(16), "signed"),
        (_fits(32), "32-bit"),
    ],
)
def test_levels_without_a_known_range_are_refused(row: Any, found: str) -> None:
    with pytest.raises(ValueError, match=f"{found} pixels have no fixed range; allowed: 8-bit and unsigned 16-bit"):
        decode_image(row)


# ----------------------------------------------------------------------------------------------------- transparency


def _glyph() -> np.ndarray:
    """Black in all channels; the middle is opaque, one pixel half transparent, the rest fully transparent."""
    glyph = np.zeros((8, 8, 4), dtype=np.uint8)
    glyph[2:6, 2:6, 3] = 255
    glyph[0, 0, 3] = 128
    return glyph


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "1", "L", "RGB", "I;16"])
def test_what_is_transparent_shows_the_background(mode: str) -> None:
    clear = _glyph()[..., 3] == 0
    if mode in ("RGBA", "LA"):
        row = encoded(Image.fromarray(_glyph()).convert(mode))
    elif mode == "PA":
        row = encoded(Image.fromarray(_glyph()), "WEBP", lossless=True)
    else:
        # One level or colour of the file marks transparent pixels.
        drawn = np.where(clear, 255, 0).astype(np.uint8)
        image = Image.fromarray(drawn if mode != "I;16" else drawn.astype(np.uint16) * 257)
        keys = {"P": 255, "1": 1, "L": 255, "RGB": (255, 255, 255), "I;16": 65535}
        row = encoded(image if mode == "I;16" else image.convert(mode), transparency=keys[mode])
    for background, level in (("white", 255), ("black", 0)):
        image, is_blended = decode_image(row, background)
        found = np.asarray(image)
        assert is_blended
        assert (found[clear] == level).all()
        assert (found[2:6, 2:6] == 0).all()
        if mode in ("RGBA", "LA", "PA"):
            assert found[0, 0].tolist() == [127 if background == "white" else 0] * 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_an_image_without_a_clear_pixel_keeps_its_own_to_the_bit(mode: str) -> None:
    image = picture(5, (16, 16)).quantize(16) if mode == "P" else picture(5, (16, 16)).convert(mode)
    row = encoded(image, **({"transparency": 200} if mode == "P" else {}))
    found, is_blended = decode_image(row, "black")
    assert not is_blended
    assert np.array_equal(np.asarray(found), np.asarray(image.convert("RGB")))


def test_the_run_says_how_many_images_were_transparent_and_what_is_behind_them(tmp_path: Path) -> None:
    rows = [encoded(Image.fromarray(_glyph())), encoded(picture(0)), encoded(picture(1))]
    source = load_images(tmp_path, rows)
    assert source.train.images[0, :, 7, 7].tolist() == [255] * 3
    assert source.describe() == [
        "image size          8 x 8 (found in the data)",
        "transparent         1 of the images, blended on white (data.background)",
    ]
    black = load_images(tmp_path, rows, background="black", image_size=8)
    assert black.train.images[0].max() == 0
    assert black.describe()[0] == "image size          8 x 8"
    assert "blended on black" in black.describe()[1]


# ------------------------------------------------------------------------------------------------------------ sizes


def _old_square(image: Image.Image, size: int) -> np.ndarray:
    """The whole image is resized, then cropped."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    image = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    return np.asarray(image).transpose(2, 0, 1)


def test_other_sizes_are_resized_by_the_shorter_side_and_cropped(tmp_path: Path) -> None:
    shapes = (8, 8), (40, 21), (5, 9), (112, 7)
    images = load_images(tmp_path, [encoded(picture(i, s)) for i, s in enumerate(shapes)], image_size=8).train.images
    for index, shape in enumerate(shapes):
        assert np.array_equal(images[index], _old_square(picture(index, shape), 8))


@pytest.mark.parametrize("shape", [(401, 12), (12, 401), (3, 170)])
def test_a_thin_image_is_cropped_first_and_looks_the_same(shape: tuple[int, int]) -> None:
    ramp = np.add.outer(np.arange(shape[1]) * 211 / shape[1], np.arange(shape[0]) * 37 / shape[0])
    image = Image.fromarray(np.stack([ramp, 255 - ramp, ramp], -1).astype(np.uint8))
    found = square(image, 8).astype(int)
    assert found.shape == (3, 8, 8)
    assert np.abs(found - _old_square(image, 8)).max() <= 1


def test_the_cost_of_a_thin_image_is_that_of_its_square(monkeypatch: pytest.MonkeyPatch) -> None:
    resize, made = Image.Image.resize, []

    def watched(self: Image.Image, size: tuple[int, int], *options: Any) -> Image.Image:
        made.append(size)
        return resize(self, size, *options)

    monkeypatch.setattr(Image.Image, "resize", watched)
    for shape in ((60000, 2), (2, 60000), (1, 1), (112, 7)):
        assert square(Image.new("RGB", shape, (1, 2, 3)), 224)[:, 5, 5].tolist() == [1, 2, 3]
    assert max(width * height for width, height in made) <= 16 * 224 * 224


def test_an_image_of_too_many_pixels_is_refused_by_its_header() -> None:
    file = bytearray(encoded(picture(0))["bytes"])
    file[16:24] = (60000).to_bytes(4, "big") * 2
    file[29:33] = crc32(file[12:29]).to_bytes(4, "big")
    with pytest.raises(ValueError, match="more than 178 million pixels; allowed: fewer, so make it smaller"):
        decode_image(bytes(file))


def test_images_of_several_sizes_ask_for_one(tmp_path: Path) -> None:
    rows = [encoded(picture(i, (side, side))) for i, side in enumerate((1, 64, 64))]
    name = write_parquet(tmp_path / "data", table(3, image=(rows, datasets.Image())), table(3, 100))
    error = refusal(tmp_path, name)
    assert error.key == "data.image_size"
    assert "the images are 3 of 8 x 8, 2 of 64 x 64, 1 of 1 x 1; allowed without it: squares of one size" in str(error)
    assert load(tmp_path, name, image_size=12).image_size == 12


@pytest.mark.parametrize(("side", "allowed"), [(3, "greater than or equal to 4"), (1025, "less than or equal to 1024")])
def test_a_side_that_was_found_has_the_bounds_of_one_that_is_given(tmp_path: Path, side: int, allowed: str) -> None:
    rows = [encoded(Image.new("RGB", (side, side), 7))] * 2
    part = table(2, image=(rows, datasets.Image()))
    error = refusal(tmp_path, write_parquet(tmp_path / "data", part, part))
    assert str(error) == f"data.image_size: is not set, and the images are 4 of {side} x {side}; allowed: {allowed}"


def test_orientation_in_exif_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = 6
    images = load_images(tmp_path, [encoded(picture(0), exif=exif)]).train.images
    assert np.array_equal(images[0], np.asarray(picture(0).rotate(-90)).transpose(2, 0, 1))
