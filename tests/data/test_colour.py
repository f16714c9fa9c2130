"""Colour operations equal torchvision's or PIL's, and bit for bit the same formulas with comparisons and `where`."""

from itertools import permutations

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from pictures import some_images, some_keys
from PIL import Image

from kaizen.data import colour
from kaizen.data.colour import gray, jitter, jitter_steps, solarize
from kaizen.data.random import hash_rows, uniform


def some_levels(n):
    """Grey levels, fractional ones included, with every pair of channels at the maximum."""
    images = some_images(n, 12).float()
    images[:, :, 4:] += 1.4 * (torch.rand(n, 3, 8, 12, generator=torch.Generator().manual_seed(1)) - 0.5)
    images[:, 0, 6], images[:, 1, 7], images[:, 2, 8] = images[:, 1, 6], images[:, 2, 7], images[:, 0, 8]
    images[:, :, 9, :4] = torch.tensor([127.5, 127.9, 128 - 2**-17, 128])
    return images.clamp(0, 255)


def some_steps(n):
    draws = uniform(some_keys(n), 8)
    factors = [0.2 + 1.6 * draws[:, 0], 0.2 + 1.6 * draws[:, 1], 2 * draws[:, 2]]
    return *factors, torch.where(draws[:, 3] < 0.3, 0.0, draws[:, 3] - 0.5), draws[:, 4:].argsort(dim=1)


ADJUST = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)


def test_jitter_is_torchvisions_in_each_of_the_24_orders():
    orders = torch.tensor(list(permutations(range(4))) * 4)
    images, draws = some_images(96).float(), uniform(some_keys(96), 4)
    factors = [0.2 + 1.6 * draws[:, 0], 0.2 + 1.6 * draws[:, 1], 2 * draws[:, 2], draws[:, 3] - 0.5]
    jittered = jitter(images, *jitter_steps(*factors, orders))
    for i, order in enumerate(orders.tolist()):
        theirs = images[i] / 255
        for part in order:
            theirs = ADJUST[part](theirs, float(factors[part][i]))
        # torchvision weighs red by .2989, ITU-R 601 and PIL by .299; this affects contrast and saturation too.
        assert (jittered[i] - theirs * 255).abs().max() < 0.2


@pytest.mark.parametrize("part", range(4))
def test_each_part_of_jitter_alone_is_torchvisions(part):
    images = some_images(20).float()
    factors = [torch.ones(20), torch.ones(20), torch.ones(20), torch.zeros(20)]
    factors[part] = torch.linspace(-0.5, 0.5, 20) if part == 3 else torch.linspace(0, 2, 20)
    jittered = jitter(images, *jitter_steps(*factors, torch.arange(4).expand(20, 4)))
    theirs = torch.stack([ADJUST[part](x / 255, float(f)) * 255 for x, f in zip(images, factors[part], strict=True)])
    assert (jittered - theirs).abs().max() < 0.06


def test_jitter_without_hue_is_jitter_with_no_turn():
    images, draws = some_images(24).float(), 0.5 + uniform(some_keys(24), 3)
    orders = torch.tensor(list(permutations(range(4))))
    with_hue = jitter(images, *jitter_steps(*draws.T, torch.zeros(24), orders))
    assert torch.equal(jitter(images, *jitter_steps(*draws.T, None, orders)), with_hue)


def test_chosen_images_are_grey_as_pils_and_others_unchanged():
    images, chosen = some_images(10), torch.arange(10) % 2 == 0
    result = gray(images.float(), chosen)
    assert torch.equal(result[~chosen], images[~chosen].float())
    for ours, image in zip(result[chosen], images[chosen], strict=True):
        theirs = torch.from_numpy(np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")))
        assert (ours - theirs).abs().max() < 0.51


def test_chosen_images_are_solarised_as_torchvisions_and_others_unchanged():
    images, chosen = some_images(10), torch.arange(10) % 2 == 0
    images[:, 0, 5, 5:7] = torch.tensor([127, 128], dtype=torch.uint8)
    result = solarize(images.float(), chosen)
    assert torch.equal(result[~chosen], images[~chosen].float())
    assert torch.equal(result[chosen], tv.solarize(images[chosen], 128).float())


def blended(pixels, part, factor):
    red, green, blue = pixels.unbind(1)
    shade = (red * 0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114)
    rest, mean = 1 - factor, (shade * 256).to(torch.int32).sum(dim=1) / (256.0 * shade.shape[1])
    from_mean, from_gray = torch.where(part == 1, rest, 0.0) * mean, torch.where(part == 2, rest, 0.0)
    base = torch.addcmul(from_mean[:, None], shade, from_gray[:, None])
    return torch.addcmul(base[:, None], pixels, factor[:, None, None]).clamp_(0, 255)


def turned(pixels, turns):
    red, green, blue = pixels.unbind(1)
    top = pixels.amax(dim=1)
    chroma = top - pixels.amin(dim=1)
    sextant = torch.where(top == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    sextant = torch.where(top == red, green - blue, sextant) / chroma.clamp(min=1e-6) + 6 * turns[:, None]
    sextant = sextant - 6 * (sextant / 6).floor()
    near = ((sextant[:, None] - torch.tensor([[0], [2], [4]])).abs() - 3).abs().clamp(1, 2)
    result = torch.addcmul((top - 2 * chroma)[:, None], chroma[:, None], near).clamp(0, 255)
    return torch.where(turns[:, None, None] == 0, pixels, result)


def test_jitter_is_its_parts_one_after_another_bit_for_bit():
    images, (*factors, turns, order) = some_levels(60), some_steps(60)
    pixels = images.flatten(2)
    for parts in order.T:
        unturned = torch.where(parts == 3, 0, parts)
        factor = torch.where(parts == 3, 1.0, torch.stack(factors, dim=1).gather(1, unturned[:, None])[:, 0])
        pixels = turned(blended(pixels, unturned, factor), torch.where(parts == 3, turns, 0.0))
    assert torch.equal(jitter(images, *jitter_steps(*factors, turns, order)).flatten(2), pixels)


@pytest.mark.parametrize("hue", [True, False])
def test_large_images_jittered_one_by_one_get_the_same_bits(monkeypatch, hue):
    images, (*factors, turns, order) = some_levels(60), some_steps(60)
    factors[0][::5], factors[1][::4], factors[2][::3] = 1, 1, 1
    steps = jitter_steps(*factors, turns if hue else None, order)
    together = jitter(images, *steps)
    monkeypatch.setattr(colour, "LARGE", 1)
    assert torch.equal(jitter(images, *steps), together)


def test_any_hue_turns_to_the_same_bits_as_by_comparisons():
    pixels, turns = some_levels(400).flatten(2), torch.linspace(-0.5, 0.5, 400)
    for some in (pixels, pixels * 1e-3, 255 - pixels * 1e-4):
        result = some.clone()
        colour._turn_hue(result, turns)
        assert torch.equal(result, turned(some, turns))


def test_levels_between_the_whole_ones_are_solarised_from_128_on():
    images = some_levels(8)
    assert torch.equal(solarize(images, torch.ones(8) > 0), torch.where(images >= 128, 255 - images, images))


def test_jitter_of_an_image_does_not_depend_on_its_place_in_the_batch():
    images, (blends, hue) = some_levels(40), jitter_steps(*some_steps(40))
    blends[::3, :, 0], blends[::3, :, 1:], hue[::3] = 1, 0, 0
    order = hash_rows(1, torch.arange(40)).argsort()
    together = jitter(images, blends, hue)
    assert torch.equal(together[::3], images[::3])
    assert torch.equal(jitter(images[order], blends[order], hue[order]), together[order])


@pytest.mark.parametrize("operation", [gray, solarize])
def test_the_result_may_take_the_place_of_the_images(operation):
    images, chosen = some_levels(10), torch.arange(10) % 2 == 0
    expected, place = operation(images, chosen), images.clone()
    operation(place, chosen, out=place)
    assert torch.equal(place, expected)
    assert not torch.equal(images, expected)
