"""Crops equal PIL's pixels, boxes follow torchvision's distribution, and no image depends on its batch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from kaizen.data import crop
from kaizen.data.crop import BOX_DRAWS, GRID, bicubic_weights, crop_resize, resample, sample_boxes
from kaizen.data.random import uniform


def some_images(n, height, width, seed=0):
    """Half noise, half smooth, with black and white corners: noise alone hides clamping at edges."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 3, height, width), dtype=np.uint8)
    ramp = np.linspace(0, 255, width, dtype=np.uint8)
    images[::2] = ramp
    images[::4, :, height // 2 :] = 255 - ramp
    return torch.from_numpy(images)


def some_boxes(n, height, width, seed=0):
    draws = uniform(torch.arange(n) + 1000 * seed, BOX_DRAWS)
    return sample_boxes(draws, height, width, (0.01, 1.0), (0.3, 3.0))


def crop_by_pil(image, top, left, height, width, size):
    picture = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((left, top, left + width, top + height))
    if height > size:
        # Pillow 13 may start with the columns here; earlier versions and this code start with the rows.
        picture = picture.resize((size, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture.resize((size, size), Image.Resampling.BICUBIC))).permute(2, 0, 1)


@pytest.mark.parametrize(
    ("height", "width", "size"), [(8, 8, 8), (28, 28, 28), (32, 32, 32), (20, 20, 32), (33, 21, 9), (96, 64, 16)]
)
def test_a_crop_is_pils_within_two_levels(height, width, size):
    images, boxes = some_images(150, height, width), some_boxes(150, height, width)
    crops = crop_resize(images, *boxes, size)
    assert crops.dtype == torch.float32
    theirs = torch.stack(
        [crop_by_pil(*each, size) for each in zip(images, *map(torch.Tensor.tolist, boxes), strict=True)]
    )
    apart = (crops - theirs).abs()
    assert apart.max() <= 2
    assert (apart > 0).float().mean() < 0.02


def test_a_whole_image_at_its_own_size_is_unchanged():
    images = some_images(4, 12, 12)
    start, length = torch.zeros(4, dtype=torch.int64), torch.full((4,), 12)
    assert torch.equal(crop_resize(images, start, start, length, length, 12), images.float())


def test_a_flipped_crop_is_the_mirror_image_bit_for_bit():
    images, boxes = some_images(40, 16, 16), some_boxes(40, 16, 16)
    flip = torch.arange(40) % 2 == 0
    plain = crop_resize(images, *boxes, 11)
    expected = torch.where(flip[:, None, None, None], plain.flip(3), plain)
    assert torch.equal(crop_resize(images, *boxes, 11, flip), expected)


@pytest.mark.parametrize(("source", "size"), [(8, 8), (32, 32), (20, 32), (64, 9), (400, 224)])
def test_products_with_the_weights_are_exact(source, size):
    """So sums may be computed in any order: on any device, with any number of threads, in any batch."""
    top, _, height, _ = some_boxes(50, source, source)
    weights = bicubic_weights(top, height, source, size)
    assert torch.equal(weights * GRID, (weights * GRID).round())
    assert weights.abs().sum(dim=2).max() * 255 * GRID < 2**24
    images = torch.randint(0, 256, (50, 1, source, source), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(
        resample(images, weights, weights).double(), resample(images.double(), weights.double(), weights.double())
    )


@pytest.mark.parametrize(("source", "size"), [(1, 4), (7, 7), (13, 32)])
def test_weights_from_the_table_are_those_of_each_box(source, size):
    boxes = torch.tensor([(start, end - start) for end in range(1, source + 1) for start in range(end)]).T
    for flip in (None, torch.arange(boxes.shape[1]) % 3 == 0):
        assert torch.equal(bicubic_weights(*boxes, source, size, flip), crop._weights(*boxes, source, size, flip))


def test_autocast_changes_no_pixel():
    images, boxes = some_images(6, 16, 16), some_boxes(6, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        crops = crop_resize(images, *boxes, 16)
    assert torch.equal(crops, crop_resize(images, *boxes, 16))


NUMBER = st.floats(0, 1 - 2**-24, width=32)


@given(
    st.lists(NUMBER, min_size=BOX_DRAWS, max_size=BOX_DRAWS),
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.tuples(st.floats(0.001, 1), st.floats(0.001, 1)).map(sorted),
    st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)).map(sorted),
)
def test_boxes_lie_inside_the_image(draws, shape, scale, ratio):
    top, left, height, width = (int(side) for side in sample_boxes(torch.tensor([draws]), *shape, scale, ratio))
    assert 0 <= top < top + height <= shape[0]
    assert 0 <= left < left + width <= shape[1]


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(8, 40, (0, 14, 8, 11)), (40, 8, (14, 0, 11, 8)), (8, 9, (0, 0, 8, 9))]
)
def test_when_no_try_fits_the_central_box_is_torchvisions(height, width, expected):
    # Tiny areas: every try has zero height or width.
    boxes = sample_boxes(torch.rand(3, BOX_DRAWS), height, width, (1e-6, 1e-6), (3 / 4, 4 / 3))
    assert {tuple(int(side[i]) for side in boxes) for i in range(3)} == {expected}
    theirs = RandomResizedCrop.get_params(torch.zeros(3, height, width), [1e-6, 1e-6], [3 / 4, 4 / 3])
    assert theirs == expected


@pytest.mark.parametrize(("height", "width", "scale"), [(32, 32, (0.08, 1.0)), (24, 40, (0.4, 1.0))])
def test_boxes_are_distributed_as_torchvisions(height, width, scale):
    n = 3000
    ours = torch.stack(sample_boxes(uniform(torch.arange(n), BOX_DRAWS), height, width, scale, (3 / 4, 4 / 3)))
    torch.manual_seed(0)
    blank = torch.zeros(3, height, width)
    theirs = torch.tensor([RandomResizedCrop.get_params(blank, list(scale), [3 / 4, 4 / 3]) for _ in range(n)]).T
    for mine, other in [
        *zip(ours, theirs, strict=True),
        (ours[2] * ours[3], theirs[2] * theirs[3]),
        (ours[3] / ours[2], theirs[3] / theirs[2]),
    ]:
        # Kolmogorov-Smirnov: the largest gap between both distributions; 1.95 is its 0.1 % critical value.
        levels = torch.cat([mine, other]).double().unique()
        gap = [torch.searchsorted(x.double().sort().values, levels, right=True) / n for x in (mine, other)]
        assert (gap[0] - gap[1]).abs().max() < 1.95 * (2 / n) ** 0.5


def test_the_result_of_an_image_does_not_depend_on_the_others():
    images, boxes = some_images(40, 13, 13), some_boxes(40, 13, 13)
    together = crop_resize(images, *boxes, 7)
    for i in range(40):
        assert torch.equal(crop_resize(images[i : i + 1], *(side[i : i + 1] for side in boxes), 7)[0], together[i])
