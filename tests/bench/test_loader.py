"""The usual pipeline of a DataLoader as a baseline, and the sentence about what limits training."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from odd_files import progressive_jpeg, scene, thin, turned_jpeg

from kaizen.bench.loader import limit_sentence, pil_loader, pil_rate
from kaizen.config.views import ViewConfig

WHOLE = ViewConfig(crop_scale=(1, 1), jitter_p=0, gray_p=0, flip_p=0)
VIEWS = (ViewConfig(blur_p=0.5, solarize_p=0.5), ViewConfig(size=8))
MOMENTS = torch.tensor([0.5] * 3), torch.tensor([0.25] * 3)


def test_bytes_and_files_become_stacked_views(tmp_path: Path) -> None:
    file = tmp_path / "0.jpg"
    file.write_bytes(turned_jpeg(1))
    for content in (progressive_jpeg(), file, str(file)):
        first, second = next(iter(pil_loader([content], [WHOLE, VIEWS[1]], 16, MOMENTS, 3, 0)))
        assert (first.shape, second.shape) == ((3, 3, 16, 16), (3, 3, 8, 8))
        levels = (first[0] * 0.25 + 0.5) * 255
        expected = np.asarray(scene().resize((16, 16))).transpose(2, 0, 1)
        assert np.abs(levels.numpy() - expected).max() < 20


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [0, 2])
def test_workers_make_batches_larger_than_the_data_after_torch_has_used_threads(workers: int) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        torch.mm(torch.ones(600, 600), torch.ones(600, 600))
        torch.nn.functional.interpolate(torch.ones(64, 3, 64, 64), 32, mode="bicubic", antialias=True)
        loader = pil_loader([turned_jpeg(6), thin(), progressive_jpeg()], VIEWS, 16, MOMENTS, 8, workers)
        assert pil_rate(loader, 3) > 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert not multiprocessing.active_children(), "a worker stayed"
    assert torch.equal(torch.get_rng_state(), state)


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match="contents: is empty; allowed: at least one"):
        pil_rate(pil_loader([], VIEWS, 16, MOMENTS, 8, 0), 1)


@pytest.mark.parametrize(
    ("rates", "said"),
    [
        (
            (900, 1500, 8),
            "The data are the limit: 8 workers prepare 900 images/s, and the device could train on 1,500, 1.7 times as "
            "many; set data.workers to about 14, on as many cores.",
        ),
        (
            (12.34, 37, 0),
            "The data are the limit: one worker prepares 12.3 images/s, and the device could train on 37, 3.0 times as "
            "many; set data.workers to about 3, on as many cores.",
        ),
        (
            (3000, 1500, 4),
            "The device is the limit: it trains on 1,500 images/s, and 4 workers prepare 3,000, 2.0 times as many; "
            "nothing needs to change, as more workers would not help.",
        ),
        (
            (1000, 1020, 1),
            "Data and device are equally fast: one worker prepares 1,000 images/s, and the device trains on 1,020; "
            "nothing needs to change, as more workers would help little.",
        ),
    ],
)
def test_the_limit_is_named_with_what_can_be_done(rates: tuple[float, float, int], said: str) -> None:
    assert limit_sentence(*rates) == said
