"""Blur is PIL's; long lines are blurred block by block to the bits that matrices of whole lines give."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from kaizen.data.blur import BLOCK, blur, blur_blocks, blur_weights
from kaizen.data.crop import resample


def some_levels(n, height, width):
    """Whole grey levels, half of the images black and white: what lies far away would show most in those."""
    images = torch.randint(0, 256, (n, 3, height, width), generator=torch.Generator().manual_seed(0)).float()
    images[::2] = torch.where(images[::2] < 128, 0.0, 255.0)
    return images


@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 8), (3, 3), (20, 13), (90, 75)])
def test_chosen_images_are_blurred_as_by_pil_and_others_unchanged(height, width):
    images = some_levels(60, height, width).to(torch.uint8)
    chosen, sigma = torch.arange(60) % 4 < 3, torch.linspace(0.1, 2.0, 60)
    result = blur(images.float(), chosen, sigma, 2.0)
    assert torch.equal(result[~chosen], images[~chosen].float())
    off_by_two = []
    for ours, image, radius in zip(result[chosen], images[chosen], sigma[chosen].tolist(), strict=True):
        theirs = Image.fromarray(image.permute(1, 2, 0).numpy()).filter(ImageFilter.GaussianBlur(radius))
        apart = (ours - torch.from_numpy(np.array(theirs)).permute(2, 0, 1)).abs()
        assert apart.max() <= (2 if radius >= 0.3 else 4)
        off_by_two.append((apart > 1).float().mean())
    assert torch.stack(off_by_two).mean() < 0.05


def test_blur_weights_are_exact_in_any_order_of_summation():
    weights = blur_weights(torch.linspace(0.1, 2.0, 50), 32, 2.0)
    assert torch.equal(weights * 2**15, (weights * 2**15).round())
    assert torch.equal(weights.sum(dim=2), torch.ones(50, 32))


@pytest.mark.parametrize("largest", [0.5, 2.0, 4.0])
@pytest.mark.parametrize(("height", "width"), [(224, 224), (96, 96), (101, 101), (97, 160), (20, 225), (128, 31)])
def test_long_lines_are_blurred_to_the_bits_that_whole_matrices_give(height, width, largest):
    images, sigma = some_levels(9, height, width), torch.linspace(0.1, largest, 9)
    whole = [blur_weights(sigma, length, largest) for length in (height, width)]
    assert torch.equal(blur(images, sigma > 0, sigma, largest), resample(images, *whole))


@pytest.mark.parametrize("window", [19, 20, 26, 50, 70])
@pytest.mark.parametrize("length", [70, 71, 95])
def test_a_block_is_blurred_as_if_the_pixels_around_it_were_the_line(length, window):
    lines, sigma = some_levels(20, length, length)[:, 0], torch.linspace(0.1, 2.0, 20)
    weights, whole = blur_weights(sigma, window, 2.0), blur_weights(sigma, length, 2.0)
    along = [blur_blocks(lines, weights, 2.0, along_rows=along_rows) for along_rows in (True, False)]
    assert torch.equal(along[0], blur_blocks(lines, whole, 2.0, along_rows=True))
    assert torch.equal(along[1], along_columns := (whole @ lines + 0.5).floor())
    assert torch.equal(along_columns, blur_blocks(lines.mT.contiguous(), weights, 2.0, along_rows=True).mT)


def test_only_lines_much_longer_than_a_block_are_cut(monkeypatch):
    sides = []

    def noted(sigma, length, largest):
        sides.append(length)
        return blur_weights(sigma, length, largest)

    monkeypatch.setattr("kaizen.data.blur.blur_weights", noted)
    for size in (32, 74, 75, 224):
        blur(some_levels(1, size, size), torch.ones(1) > 0, torch.ones(1), 2.0)
    assert sides == [32, 74, BLOCK + 18, BLOCK + 18]
