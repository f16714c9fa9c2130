"""model.onnx gives in onnxruntime what the model gives in torch."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from held import held_of
from small_sources import picture
from test_export import execute

import kaizen
from kaizen.config.encoder import EncoderConfig
from kaizen.takeaway.description import Held, read_run
from kaizen.takeaway.export import export

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


def compare(folder: Path, readers: dict[str, str]) -> Any:
    """Compare the graph with the models of a folder for batches of several sizes; readers by output."""
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert [part.name for part in session.get_outputs()] == ["features", *readers]
    for count in (1, 2, 5):
        images = [picture(number, (11, 9)) for number in range(count)]
        pixels = kaizen.load_model(folder).prepare(images)
        features, *probabilities = session.run(None, {"images": pixels})
        for reader, found in zip(readers.values(), probabilities, strict=True):
            model = kaizen.load_model(folder, reader=reader)
            expected = model.features(images)
            assert np.allclose(features, expected, rtol=1e-3, atol=1e-3)
            with torch.no_grad():
                assert np.allclose(found, model.reading(expected), rtol=1e-3, atol=1e-5)
            assert found.shape == (count, len(model.class_names))
            names = np.array(model.class_names)
            assert set(names[found[0] > 0]) <= set(model.taught)
    return session


@pytest.mark.slow
def test_a_run_as_a_graph(undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "out"
    export(read_run(undisturbed, 1), folder, onnx=True)
    compare(folder, {"probabilities": "classifier", "probabilities_statistics": "statistics"})
    picture(0).save(folder / "image.png")
    names = execute(folder, "With onnxruntime", monkeypatch)
    expected = kaizen.load_model(folder).predict(folder / "image.png", top=1)[0][0]
    assert names["names"][names["probabilities"][0].argmax()] == expected.name


@pytest.mark.slow
@pytest.mark.parametrize("config", [EncoderConfig(name="vit_tiny", stem="cifar", patch=4)], ids=lambda c: c.name)
def test_a_vit_as_a_graph(config: EncoderConfig, tmp_path: Path) -> None:
    export(held_of(config, 8), tmp_path / "out", onnx=True)
    compare(tmp_path / "out", {"probabilities": "classifier"})


@pytest.mark.slow
def test_an_encoder_that_was_taught_no_class_gives_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, folder = EncoderConfig(name="resnet18", stem="imagenet", norm="group", width=4), tmp_path / "out"
    held: Held = held_of(config, 32, taught={"classifier": ()})
    export(held, folder, onnx=True)
    compare(folder, {})
    picture(0).save(folder / "image.png")
    assert execute(folder, "With onnxruntime", monkeypatch)["features"].shape == (1, 32)
