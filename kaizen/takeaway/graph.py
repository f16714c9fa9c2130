"""A model as an ONNX graph: uint8 images in, features and probabilities out; the normalisation is part of the graph."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from kaizen.data.views import normalize
from kaizen.errors import ConfigError
from kaizen.takeaway.description import Description, Reader
from kaizen.takeaway.model import Model, Reading

PACKAGES = ("onnx", "onnxscript")
"""What torch needs to write a graph; nothing else does."""


def can_write() -> bool:
    """Whether PACKAGES are installed."""
    return all(find_spec(name) for name in PACKAGES)


class Graph(nn.Module):
    """Images uint8 (n, 3, size, size) -> features (n, d), and probabilities (n, classes) of each reader."""

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: nn.Module, readings: Mapping[Reader, Reading], about: Description) -> None:
        super().__init__()
        self.encoder, self.readings = encoder, nn.ModuleList(readings.values())
        self.register_buffer("mean", torch.tensor(about.mean))
        self.register_buffer("std", torch.tensor(about.std))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See the class."""
        features = self.encoder(normalize(images.float(), self.mean, self.std))
        return (features, *(reading(features) for reading in self.readings))


def outputs(about: Description) -> list[str]:
    """Names of a graph's outputs: features, then `probabilities` of the classifier and probabilities_READER of others.

    Readers that were taught no class have none.
    """
    names = {
        reader: "probabilities" if reader == "classifier" else f"probabilities_{reader}" for reader in about.taught
    }
    return ["features", *(name for reader, name in names.items() if about.taught[reader])]


def write_graph(models: Mapping[Reader, Model], file: Path) -> None:
    """Write the model as one ONNX file; the number of images in a batch is free.

    Args:
        models: one or more by reader, in the order of their description, on the CPU.

    Raises:
        ConfigError: the encoder has an operation that ONNX cannot express.
    """
    first = next(iter(models.values()))
    about, side = first.description, first.image_size
    graph = Graph(first.encoder, {name: model.reading for name, model in models.items() if model.taught}, about).eval()
    images = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    with _silence(), _told():
        torch.onnx.export(
            graph,
            (images,),
            str(file),
            input_names=["images"],
            output_names=outputs(about),
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turn a refusal of the exporter into one message."""
    try:
        yield
    except (torch.onnx.OnnxExporterError, torch.onnx.errors.OnnxExporterError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError("--onnx", f"this encoder cannot be written ({reason}); allowed: --no-onnx") from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The exporter tells of its own steps and deprecations, which are no concern of the user's."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
