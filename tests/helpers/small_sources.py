"""Small sources on disk, for tests of reading, refusals and the cache."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from kaizen.data.source import Source, load_source
from kaizen.errors import ConfigError

LABELS = datasets.ClassLabel(names=["cat", "dog", "eel"])


@pytest.fixture(scope="module", autouse=True)
def no_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """These tests neither write to the user's home nor read from it."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(home))
        patch.setenv("HF_DATASETS_CACHE", str(home / "datasets"))
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
        yield
        assert not (home / "datasets").exists(), "a source was converted outside its own cache"


def picture(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    levels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    return Image.fromarray(levels)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> dict[str, Any]:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def table(count: int = 6, first: int = 0, **columns: Any) -> datasets.Dataset:
    """A small split with image and label; columns given as (values, feature) are added or replace these."""
    held: dict[str, Any] = {
        "image": ([encoded(picture(first + i)) for i in range(count)], datasets.Image()),
        "label": ([i % 3 for i in range(count)], LABELS),
    }
    held = {name: column for name, column in (held | columns).items() if column is not None}
    features = datasets.Features({name: feature for name, (_, feature) in held.items()})
    return datasets.Dataset.from_dict({name: values for name, (values, _) in held.items()}, features=features)


def write_parquet(folder: Path, train: datasets.Dataset | None = None, test: datasets.Dataset | None = None) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    (table() if train is None else train).to_parquet(folder / "train-00000.parquet")
    (table(3, 100) if test is None else test).to_parquet(folder / "test.parquet")
    return f"parquet:{folder}"


def load(tmp_path: Path, source: str, **options: Any) -> Source:
    """A source that is stored as pixels, unless the options say otherwise."""
    return load_source(source, **({"cache_dir": str(tmp_path / "cache"), "store": "pixels"} | options))


def load_images(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> Source:
    """A parquet source with the given encoded training images."""
    train = table(len(rows), image=(rows, datasets.Image()))
    return load(tmp_path, write_parquet(tmp_path / "data", train), **options)


def refusal(tmp_path: Path, source: str, **options: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, source, **options)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "cache").glob("*")), "a refused source left something in the cache"
    return caught.value
