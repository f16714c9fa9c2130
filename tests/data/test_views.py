"""Each operation equals torchvision's or PIL's with equal parameters; a view depends on its key alone."""

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import some_images, some_keys
from torch._subclasses import FakeTensorMode

from kaizen.config.views import ViewConfig
from kaizen.data import colour, crop, random, views
from kaizen.data.blur import blur
from kaizen.data.colour import gray, jitter, jitter_steps, solarize
from kaizen.data.crop import crop_resize, sample_boxes
from kaizen.data.random import uniform
from kaizen.data.views import Column, augment, normalize, sample_jitter

MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.25, 0.3])
EVERYTHING = ViewConfig(blur_p=0.5, solarize_p=0.5, gray_p=0.3)
NOTHING = ViewConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), jitter_p=0, gray_p=0, flip_p=0)


def levels(normalized):
    return (normalized * STD[:, None, None] + MEAN[:, None, None]) * 255


def test_jitter_is_drawn_from_torchvisions_ranges_and_spares_the_rest():
    draws = uniform(some_keys(4000), Column.END)
    *factors, order = sample_jitter(draws, (0.4, 1.5, 0.2, 0.1), 0.8)
    ranges, neutral = [(0.6, 1.4), (0, 2.5), (0.8, 1.2), (-0.1, 0.1)], [1, 1, 1, 0]
    spared = draws[:, Column.JITTER] >= 0.8
    assert abs(spared.float().mean() - 0.2) < 0.03
    for factor, (low, high), none in zip(factors, ranges, neutral, strict=True):
        assert bool((factor[spared] == none).all())
        drawn = (factor[~spared] - low) / (high - low)
        assert 0 <= drawn.min() < 0.01
        assert 0.99 < drawn.max() <= 1
        assert abs(drawn.mean() - 0.5) < 0.03
    counts = (order * torch.tensor([64, 16, 4, 1])).sum(1).unique(return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 4000 / 24).square() / (4000 / 24)).sum() < 23 + 5 * 46**0.5


def test_normalised_images_are_torchvisions():
    images = some_images(5)
    expected = tv.normalize(images / 255, MEAN.tolist(), STD.tolist())
    for given_images in (images, images.float()):
        result = normalize(given_images, MEAN, STD)
        assert result.dtype == torch.float32
        assert (result - expected).abs().max() < 1e-5


def test_with_nothing_to_do_a_view_is_the_normalised_image():
    images = some_images(5)
    assert torch.equal(augment(images, some_keys(5), 0, NOTHING, 10, MEAN, STD), normalize(images, MEAN, STD))


def test_a_view_is_its_operations_one_after_another():
    """The flip inside the crop must equal a flip after all other operations."""
    images, keys, size = some_images(64, 12), some_keys(64), 9
    draws = uniform(keys, Column.END, stream=1)
    x = crop_resize(images, *sample_boxes(draws[:, Column.BOX :], 12, 12, (0.08, 1.0), (3 / 4, 4 / 3)), size)
    x = jitter(x, *jitter_steps(*sample_jitter(draws, EVERYTHING.jitter, 0.8)))
    x = gray(x, draws[:, Column.GRAY] < 0.3)
    x = blur(x, draws[:, Column.BLUR] < 0.5, 0.1 + 1.9 * draws[:, Column.BLUR_SIGMA], 2.0)
    x = solarize(x, draws[:, Column.SOLARIZE] < 0.5)
    flip = draws[:, Column.FLIP] < 0.5
    assert 10 < flip.sum() < 54
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    assert (augment(images, keys, 1, EVERYTHING, size, MEAN, STD) - normalize(x, MEAN, STD)).abs().max() < 1e-5


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(3, 13), st.integers(3, 13), st.integers(0, 3), st.integers(0, 2**63 - 1))
def test_a_view_does_not_depend_on_the_other_images(data, source, size, view, seed):
    images, keys = some_images(20, max(source, 4))[:, :, :source, :source], some_keys(20, seed)
    together = augment(images, keys, view, EVERYTHING, size, MEAN, STD)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, 19), min_size=1, max_size=8)))
    alone = augment(images[rows], keys[rows], view, EVERYTHING, size, MEAN, STD)
    assert torch.equal(alone, together[rows])


def test_parts_that_fit_the_cache_change_nothing(monkeypatch):
    images, keys = some_images(23), some_keys(23)
    whole = augment(images, keys, 0, EVERYTHING, 10, MEAN, STD)
    monkeypatch.setattr(views, "CACHED_PIXELS", 500)
    assert torch.equal(augment(images, keys, 0, EVERYTHING, 10, MEAN, STD), whole)
    monkeypatch.setattr(views, "LEAST", 7)
    assert torch.equal(augment(images, keys, 0, EVERYTHING, 10, MEAN, STD), whole)


def test_views_differ_between_views_and_keys_and_repeat_with_them():
    images = some_images(1).expand(30, 3, 10, 10)
    first, again, second = (augment(images, some_keys(30), v, EVERYTHING, 10, MEAN, STD) for v in (0, 0, 1))
    assert torch.equal(first, again)
    everything = torch.cat([first, second])
    assert len(everything.flatten(1).unique(dim=0)) == 60


@pytest.mark.parametrize("name", ["jitter_p", "gray_p", "blur_p", "solarize_p", "flip_p"])
@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_probabilities_are_respected(name, probability):
    only = {"jitter_p": 0.0, "gray_p": 0.0, "flip_p": 0.0, name: probability}
    parameters = ViewConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), blur_sigma=(1.0, 2.0), **only)
    images = some_images(1)[:, :, 4:8, 4:8].expand(3000, 3, 4, 4)
    result = augment(images, some_keys(3000), 0, parameters, 4, MEAN, STD)
    changed = (result != normalize(images, MEAN, STD)).flatten(1).any(dim=1).float().mean()
    assert abs(changed - probability) <= 4 * (probability * (1 - probability) / 3000) ** 0.5


def test_an_operation_switched_off_shifts_no_other_draws():
    images, keys = some_images(40), some_keys(40)
    with_solarize = augment(images, keys, 0, EVERYTHING, 10, MEAN, STD)
    without = augment(images, keys, 0, ViewConfig(blur_p=0.5, gray_p=0.3), 10, MEAN, STD)
    spared = uniform(keys, Column.END)[:, Column.SOLARIZE] >= 0.5
    assert 5 < spared.sum() < 35
    assert torch.equal(with_solarize[spared], without[spared])


def test_columns_of_draws_do_not_overlap():
    assert [Column.ORDER + 4, Column.GRAY + 1] == [Column.GRAY, Column.BLUR]
    assert sorted(Column) == list(Column)
    assert len(set(Column)) == len(Column.__members__)


def test_the_configuration_serves_as_parameters_with_the_same_defaults():
    images, keys = some_images(6), some_keys(6)
    ours = augment(images, keys, 0, ViewConfig(), 10, MEAN, STD)
    assert torch.equal(augment(images, keys, 0, ViewConfig(), 10, MEAN, STD), ours)


def test_an_empty_batch_gives_no_views():
    views_of_none = augment(some_images(4)[:0], some_keys(0), 0, EVERYTHING, 7, MEAN, STD)
    assert views_of_none.shape == (0, 3, 7, 7)


@pytest.mark.parametrize(("source", "size"), [((20, 20), 32), ((40, 30), 16), ((5, 5), 5)])
def test_views_have_the_size_and_type_asked_for_and_levels_in_range(source, size):
    images = torch.randint(0, 256, (8, 3, *source), dtype=torch.uint8)
    result = augment(images, some_keys(8), 0, EVERYTHING, size, MEAN, STD)
    assert result.shape == (8, 3, size, size)
    assert result.dtype == torch.float32
    assert -1e-3 <= levels(result).min() <= levels(result).max() <= 255 + 1e-3


@pytest.mark.parametrize("parameters", [EVERYTHING, ViewConfig(jitter=(0.4, 0.4, 0.2, 0), crop_scale=(0.2, 1.0))])
def test_the_way_that_a_gpu_takes_gives_the_same_bits(monkeypatch, parameters):
    images, keys = some_images(70), some_keys(70)
    expected = augment(images, keys, 1, parameters, 10, MEAN, STD)
    for module in (views, colour):
        monkeypatch.setattr(module, "on_cpu", lambda tensor: False)
    result = augment(images, keys, 1, parameters, 10, MEAN, STD)
    assert torch.equal(result, expected)
    assert result.is_contiguous()
    assert expected.is_contiguous()


@pytest.mark.parametrize("size", [8, 96])
def test_no_operation_waits_for_values_from_a_gpu(size):
    """Meta tensors make every such operation raise (item, nonzero, indexing with a mask)."""
    caches = (random._places, crop._table)
    for cache in caches:
        cache.cache_clear()
    with FakeTensorMode():
        images = torch.empty(4, 3, 9, 9, dtype=torch.uint8, device="cuda")
        keys, moments = torch.empty(4, dtype=torch.int64, device="cuda"), torch.empty(2, 3, device="cuda")
        assert augment(images, keys, 0, EVERYTHING, size, *moments).shape == (4, 3, size, size)
    for cache in caches:
        cache.cache_clear()
