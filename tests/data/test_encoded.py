"""Images that stay encoded: crops and squares against Pillow's, from any kind of file, by any number of threads."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import odd_files
import pytest
import torch
from photographs import jpeg
from PIL import Image
from small_sources import encoded, load_images, no_hub, picture
from torchvision.transforms import v2

from kaizen.config.views import ViewConfig
from kaizen.data.crops import AHEAD_BYTES, MOST_AHEAD, Cropper
from kaizen.data.decoding import KEPT, Decoding, Shape, centre, crops
from kaizen.data.encoded import Encoded
from kaizen.data.images import decode_image
from kaizen.data.measured import shape_of
from kaizen.data.random import hash_rows
from kaizen.data.views import augment, sample_crops
from kaizen.errors import ConfigError

__all__ = ["no_hub"]
BOXES = [(0, 0, 30, 40), (3, 5, 20, 27), (10, 0, 5, 9), (29, 39, 1, 1), (0, 12, 30, 7)]
NONE = np.empty(0, dtype=np.int64)


def bytes_array(content: bytes) -> np.ndarray:
    return np.frombuffer(content, dtype=np.uint8).copy()


def rgb(content: bytes) -> Image.Image:
    return decode_image(content)[0]


def pils(image: Image.Image, box: tuple[int, int, int, int], size: int) -> np.ndarray:
    top, left, tall, wide = box
    part = image.crop((left, top, left + wide, top + tall))
    return np.asarray(part.resize((size, size), Image.Resampling.BICUBIC)).astype(int)


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(7).integers(256, size=(height, width, 3), dtype=np.uint8))


def clear() -> Image.Image:
    """Noise of every opacity."""
    image = noise(40, 30)
    image.putalpha(noise(40, 30).convert("L"))
    return image


def png(image: Image.Image) -> bytes:
    return encoded(image)["bytes"]


@pytest.mark.parametrize(
    "content", [jpeg(noise(40, 30)), png(noise(40, 30)), png(clear())], ids=["jpeg", "png", "clear"]
)
def test_a_crop_equals_pils_crop_and_resize_of_the_same_box(content: bytes) -> None:
    sizes = [24, 16, 9, 5, 8]
    found = crops(bytes_array(content), shape_of(bytes_array(content)), BOXES, sizes, "white")
    for crop, box, size in zip(found, BOXES, sizes, strict=True):
        assert crop.shape == (size, size, 3)
        assert np.abs(crop.astype(int) - pils(rgb(content), box, size)).max() <= 2


def test_a_reduced_jpeg_differs_by_half_a_grey_level() -> None:
    # Smooth and fine structure, as in a photograph: the mean of the levels around each pixel, at three scales.
    base = noise(640, 480)
    images = [base.resize((640 // k, 480 // k)).resize((640, 480), Image.Resampling.BICUBIC) for k in (2, 8, 32)]
    content = jpeg(Image.fromarray(np.mean([np.asarray(image) for image in images], axis=0).astype(np.uint8)))
    shape, box, size = shape_of(bytes_array(content)), (31, 53, 400, 520), 400 // (2 * KEPT)
    (reduced,) = crops(bytes_array(content), shape, [box], [size], "white")
    (whole,) = crops(bytes_array(content), replace(shape, plain=False), [box], [size], "white")
    gaps = np.abs(reduced.astype(int) - whole)
    assert 0 < gaps.mean() < 0.6
    assert np.quantile(gaps, 0.99) <= 4


def test_every_crop_of_an_image_decides_whether_it_is_decoded_at_reduced_size() -> None:
    content = bytes_array(jpeg(noise(320, 240)))
    small, fine = (0, 0, 240, 320), (11, 13, 40, 40)
    (alone,) = crops(content, shape_of(content), [small], [16], "white")
    both = crops(content, shape_of(content), [small, fine], [16, 32], "white")
    assert not np.array_equal(alone, both[0])
    assert np.abs(both[1].astype(int) - pils(rgb(content.tobytes()), fine, 32)).max() <= 2


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (33, 33), (61, 24)])
def test_an_unaugmented_image_is_torchvisions_resize_and_centre_crop(size: tuple[int, int]) -> None:
    content = jpeg(noise(*size))
    found = centre(bytes_array(content), shape_of(bytes_array(content)), Decoding(16, 18)).astype(int)
    usual = v2.Compose([v2.Resize(18, v2.InterpolationMode.BICUBIC), v2.CenterCrop(16)])(rgb(content))
    assert np.abs(found - np.asarray(usual)).max() <= 2


@pytest.mark.parametrize("size", [(641, 483), (483, 641), (700, 355), (1123, 512)])
def test_an_unaugmented_image_lies_the_same_where_it_is_decoded_at_reduced_size(size: tuple[int, int]) -> None:
    smooth = noise(size[0] // 16, size[1] // 16).resize(size, Image.Resampling.BICUBIC)
    content = bytes_array(jpeg(smooth))
    shape, decoding = shape_of(content), Decoding(64, 73)
    reduced, whole = (centre(content, one, decoding).astype(int) for one in (shape, replace(shape, plain=False)))
    gaps = np.abs(reduced - whole)
    assert 0 < gaps.mean() < 0.6
    assert np.quantile(gaps, 0.99) <= 4


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_a_turned_image_of_any_format_has_the_shape_of_its_pixels(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[Image.ExifTags.Base.Orientation] = orientation
    content = bytes_array(encoded(noise(40, 30), kind, exif=exif)["bytes"])
    shape = shape_of(content)
    assert (shape.width, shape.height) == rgb(content.tobytes()).size
    assert len(crops(content, shape, [(0, 0, 20, 20)], [8], "white")) == 1


def encoded_source(tmp_path: Path, rows: list[dict[str, object]], **options: object) -> Encoded:
    images = load_images(tmp_path, rows, store="files", image_size=16, **options).train.images
    assert isinstance(images, Encoded)
    return images


@pytest.mark.parametrize("name", odd_files.READABLE)
def test_odd_files_give_the_pixels_that_pillow_gives(tmp_path: Path, name: str) -> None:
    content = odd_files.READABLE[name]()
    images = encoded_source(tmp_path, [{"bytes": content, "path": None}] * 2)
    image = rgb(content)
    height, width = images.shapes[0][:2].tolist()
    assert (width, height) == image.size
    box = (0, 0, min(height, 40), min(width, 40))
    (crop,) = images.crop(0, [box], [24])
    assert np.abs(crop.astype(int) - pils(image, box, 24)).max() <= 2
    assert images[np.array([1])].shape == (1, 3, 16, 16)


@pytest.mark.parametrize("name", odd_files.BROKEN)
def test_broken_files_are_named_or_left_out_and_counted(tmp_path: Path, name: str) -> None:
    rows = [encoded(picture(0)), {"bytes": odd_files.BROKEN[name](), "path": None}, encoded(picture(2))]
    with pytest.raises(ConfigError, match=r"^data.source: split 'train', row 1: image cannot be read \(.+\); data.br"):
        encoded_source(tmp_path, rows)
    kept = load_images(tmp_path, rows, store="files", image_size=16, broken="skip")
    assert (len(kept.train.images), len(kept.train.skipped)) == (2, 1)
    assert "left out            1 of the images" in "\n".join(kept.describe())


def cropper_of(images: Encoded, workers: int) -> Cropper:
    images = Encoded(images.contents, images.shapes, replace(images.decoding, workers=workers))
    views = [ViewConfig(), ViewConfig(size=8, crop_scale=(0.1, 0.4))]
    return Cropper(images, images.take(np.array([1, 0])), views, pinned=False)


def test_crops_do_not_depend_on_the_number_of_workers_or_on_the_batch(tmp_path: Path) -> None:
    images = encoded_source(tmp_path, [encoded(noise(30 + i, 50 - i)) for i in range(6)])
    ids, rows, keys = np.arange(6), np.array([1, 0]), hash_rows(5, torch.arange(8))
    one, four = (cropper_of(images, workers).crop(ids, rows, keys) for workers in (1, 4))
    assert [made.shape for made in one] == [(8, 3, 16, 16), (8, 3, 8, 8)]
    assert all(map(torch.equal, one, four))
    half = cropper_of(images, 2).crop(ids[4:], rows[:1], keys[4:7])
    assert all(torch.equal(part, whole[4:7]) for part, whole in zip(half, one, strict=True))
    # Rows of the memory are the same images, with keys of their own.
    again = cropper_of(images, 2).crop(np.array([0, 1]), NONE, keys[6:])
    assert all(torch.equal(part, whole[6:]) for part, whole in zip(again, one, strict=True))


def test_views_of_crops_are_those_that_are_cropped_on_the_device(tmp_path: Path) -> None:
    pixels = [np.asarray(noise(16, 16)) for _ in range(8)]
    images = encoded_source(tmp_path, [encoded(Image.fromarray(one)) for one in pixels])
    keys, view, moments = hash_rows(3, torch.arange(8)), ViewConfig(blur_p=0.5), (torch.zeros(3), torch.ones(3) / 255)
    made = Cropper(images, images.take(NONE), [view], pinned=False).crop(np.arange(8), NONE, keys)[0]
    ours = augment(made, keys, 0, view, 16, *moments, cropped=True)
    stored = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    usual = augment(stored, keys, 0, view, 16, *moments)
    # Both crops are within 2 levels of Pillow's; contrast and hue stretch the difference.
    assert (ours - usual).abs().median() < 0.5
    assert (ours - usual).abs().quantile(0.99) < 5


def test_boxes_of_images_of_many_sizes_are_those_of_each_size_alone() -> None:
    keys, view = hash_rows(1, torch.arange(40)), ViewConfig()
    heights, widths = torch.arange(40) * 7 + 3, torch.arange(40).flip(0) * 31 + 1
    together, _ = sample_crops(keys, 0, view, heights, widths)
    for place in range(40):
        some = slice(place, place + 1)
        assert torch.equal(sample_crops(keys[some], 0, view, heights[some], widths[some])[0], together[some])
    top, left, tall, wide = together.T
    assert ((top >= 0) & (left >= 0) & (tall >= 1) & (wide >= 1)).all()
    assert ((top + tall <= heights) & (left + wide <= widths)).all()


def test_boxes_cover_the_area_and_the_ratios_that_they_are_drawn_from() -> None:
    keys, view = hash_rows(2, torch.arange(20_000)), ViewConfig(crop_scale=(0.08, 1.0))
    sides = torch.full((20_000,), 600), torch.full((20_000,), 800)
    _, _, tall, wide = sample_crops(keys, 1, view, *sides)[0].double().T
    area, ratio = tall * wide / 480_000, (wide / tall).log()
    # Small boxes always fit: there the area is uniform, and so is the logarithm of the ratio.
    small = area < 0.5
    assert abs(float(area[small].mean()) - 0.29) < 0.005
    assert abs(float(ratio[small].mean())) < 0.01
    assert abs(float(ratio[small].std()) - 0.1661) < 0.004


def test_a_file_that_changes_while_a_run_reads_it_is_named(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.jpg" for i in range(2)]
    for path in paths:
        path.write_bytes(jpeg(noise(30, 20)))
    images = encoded_source(tmp_path, [{"bytes": None, "path": str(path)} for path in paths])
    paths[1].write_bytes(jpeg(noise(30, 21)))
    with pytest.raises(ConfigError, match=r"1\.jpg: image can no longer be read \(it has \d+ bytes and had \d+\)"):
        _ = images[np.array([0, 1])]
    paths[1].unlink()
    with pytest.raises(ConfigError, match=r"1\.jpg: image can no longer be read"):
        images.crop(1, [(0, 0, 9, 9)], [8])


def test_a_shape_that_does_not_fit_is_an_error_and_not_a_wrong_crop() -> None:
    content = bytes_array(jpeg(noise(30, 20)))
    with pytest.raises(ValueError, match="it is 30 x 20 and was 31 x 20 pixels"):
        crops(content, Shape(20, 31, plain=True), [(0, 0, 9, 9)], [8], "white")


def test_what_is_made_ahead_is_bounded_in_bytes(tmp_path: Path) -> None:
    images = encoded_source(tmp_path, [encoded(picture(0))] * 2)
    large = Cropper(images, images, [ViewConfig(size=224)] * 2, pinned=False)
    assert large.image_bytes == 2 * 3 * 224 * 224
    assert large.ahead(288) == AHEAD_BYTES // (288 * large.image_bytes) == 6
    assert (large.ahead(10_000), large.ahead(1)) == (1, MOST_AHEAD)


def test_an_image_in_memory_is_read_as_one_in_a_file(tmp_path: Path) -> None:
    images = encoded_source(tmp_path, [encoded(noise(30, 20)), encoded(clear()), {"bytes": jpeg(noise(21, 35))}])
    two = images.take(np.array([2, 0]))
    held = Encoded.collected([(two, 0), (two, 1), (images, 1)], images.decoding)
    assert np.array_equal(held[np.arange(3)], images[np.array([2, 0, 1])])
    again = Encoded.of_tensors(held.tensors(), held.decoding)
    assert np.array_equal(again[np.array([1])], images[np.array([0])])
    assert held.lengths.tolist() == images.lengths[[2, 0, 1]].tolist()
    assert BytesIO(held.contents.read(0)).getvalue() == images.contents.read(2).tobytes()
