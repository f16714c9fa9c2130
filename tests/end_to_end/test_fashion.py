"""Real, larger data through parquet: Fashion-MNIST, 300 images per class."""

import json
from pathlib import Path

import fashion
import pytest
from conftest import TINY

from kaizen.commands.train import main


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not fashion.FILES.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_written_as_parquet_trains_and_evaluates(tmp_path: Path) -> None:
    source = fashion.write(tmp_path / "data", 300, 60)
    small = ["--encoder.width", "8", "--optim.batch", "75", "--optim.epochs", "3", "--run.checkpoint_every", "0"]
    run = ["digits", *TINY, *small, "--data.source", source, "--data.cache_dir", str(tmp_path), "--run.dir"]
    assert main([*run, str(tmp_path / "run")]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    tasks = results["stream"]["tasks"]
    assert [(task["train_images"], task["test_images"]) for task in tasks] == [(600, 120)] * 5
    reader = results["readers"]["classifier"]
    assert reader["learning_accuracy"] > 0.4, "each task is learned while it is trained"
