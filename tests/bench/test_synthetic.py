"""Random images instead of data, for tasks that a recipe lists, sizes or tells by a column."""

import pytest

from kaizen.bench.synthetic import choose_stream
from kaizen.cli.resolve import resolve


@pytest.mark.parametrize(
    ("keys", "images"),
    [
        ({"stream.classes": "[[apple,bear],[99]]"}, [1000, 500]),
        ({"stream.sizes": "60,10"}, [30000, 5000]),
        ({"stream.kind": "data", "stream.sizes": "40000,10"}, [40000, 10]),
        ({"stream.kind": "column", "data.task_column": "year"}, [10000] * 5),
    ],
)
def test_random_images_are_cut_into_tasks_of_ones_choice(keys: dict[str, str], images: list[int]) -> None:
    config = resolve("cifar100-simclr", keys | {"data.image_size": "4"})[1]
    assert choose_stream(config, True)[0].train_sizes == images
