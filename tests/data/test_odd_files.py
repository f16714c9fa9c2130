"""Odd and broken files of images: each is what its name says, and becomes pixels or is refused."""

from io import BytesIO

import numpy as np
import pytest
from odd_files import BROKEN, GREY_LEVELS, READABLE, SIZES, WIDTH, cmyk_jpeg, moving_gif, scene
from PIL import Image

from kaizen.data.images import decode_image

SHOWS_NO_SCENE = ("deep.png", "palette.png", "rgba.png")


@pytest.mark.parametrize("name", READABLE)
def test_an_odd_file_becomes_its_upright_image(name: str) -> None:
    image, is_blended = decode_image(READABLE[name]())
    assert (image.size, image.mode) == (SIZES[name], "RGB")
    found = np.asarray(image).astype(int)
    if name == "deep.png":
        assert np.array_equal(found[..., 0], np.floor(GREY_LEVELS / 257 + 0.5))
    elif name in SHOWS_NO_SCENE:
        assert is_blended
        assert (found[:, : WIDTH // 2] == 255).all()
    else:
        assert np.abs(found - np.asarray(scene(image.size)).astype(int)).max() < 30
    if name == "rgba.png":
        assert np.array_equal(found[:, WIDTH // 2 :], np.asarray(scene())[:, WIDTH // 2 :])


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused(name: str) -> None:
    with pytest.raises((OSError, ValueError), match=r"no bytes|none of the image formats|truncated|broken data"):
        decode_image(BROKEN[name]())


def test_odd_files_are_what_their_names_say() -> None:
    opened = {name: Image.open(BytesIO(make())) for name, make in READABLE.items()}
    assert {opened[name].mode for name in ("deep.png", "palette.png", "rgba.png", "cmyk.jpg")} == {
        *("I;16", "P", "RGBA", "CMYK")
    }
    assert b"Adobe" in cmyk_jpeg()
    assert Image.open(BytesIO(moving_gif())).n_frames == 3  # type: ignore[attr-defined]
    assert opened["progressive.jpg"].info["progressive"]
    for number in range(2, 9):
        image = opened[f"turned_{number}.jpg"]
        assert image.getexif()[Image.ExifTags.Base.Orientation] == number
        assert image.size == (SIZES["turned_1.jpg"][::-1] if number >= 5 else SIZES["turned_1.jpg"])
