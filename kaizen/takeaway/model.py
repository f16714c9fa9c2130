"""A trained model for images of one's own: their preparation, encoder and reader in one object."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import count, islice
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from kaizen.errors import ConfigError
from kaizen.evaluation.features import BATCH, encode
from kaizen.parallel import memory_format
from kaizen.takeaway.description import Description
from kaizen.takeaway.pictures import Pictures, each, pixels_of


class Prediction(NamedTuple):
    """A class and its probability, 0..1."""

    name: str
    probability: float


class Reading(nn.Module):
    """Features (n, d) -> probabilities (n, classes): softmax over the classes taught, 0 for all others."""

    untaught: Tensor

    def __init__(self, head: nn.Module, taught: Sequence[int], classes: int) -> None:
        super().__init__()
        self.head = head
        untaught = torch.ones(classes, dtype=torch.bool)
        untaught[list(taught)] = False
        self.register_buffer("untaught", untaught)

    def forward(self, features: Tensor) -> Tensor:
        """Features (n, d) -> probabilities (n, classes) float32."""
        scores: Tensor = self.head(features)
        return scores.float().masked_fill(self.untaught, -torch.inf).softmax(dim=1)


class Model:
    """A trained encoder with a reader of its features.

    Attributes:
        encoder: torch module in eval mode, normalised images (n, 3, image_size, image_size) -> features (n, d).
        reading: torch module, features (n, d) -> probabilities (n, classes).
        class_names: names of the classifier's outputs, those that it was not taught included.
        description: everything else that config.json of an exported model has.
    """

    def __init__(self, description: Description, encoder: nn.Module, reading: Reading) -> None:
        self.description, self.encoder, self.reading = description, encoder.eval(), reading.eval()
        self.class_names = list(description.class_names)
        self.taught = [name for name, no in zip(self.class_names, reading.untaught.tolist(), strict=True) if not no]
        self.image_size = description.image_size
        self.device = torch.device("cpu")
        self._moments = torch.tensor(description.mean), torch.tensor(description.std)
        self.to("cpu")

    def __repr__(self) -> str:
        about = self.description
        classes = f"{len(self.taught)} of {len(self.class_names)} classes taught"
        return f"Model({about.encoder.name}, {about.image_size} pixels, task {about.task}, {classes}, {self.device})"

    def to(self, device: str | torch.device) -> "Model":
        """Move to a device, such as cuda; returns the same model."""
        self.device = torch.device(device)
        self.encoder.to(self.device).to(memory_format=memory_format(self.encoder, self.device))
        self.reading.to(self.device)
        mean, std = self._moments
        self._moments = mean.to(self.device), std.to(self.device)
        return self

    def features(self, images: Pictures) -> Tensor:
        """Features float32 (n, d) of n images (one image: n = 1), on the model's device.

        On a CPU, with the same number of threads, they are bit for bit those of the run's evaluation if the images are
        the same, in the same order.

        Raises:
            ConfigError: an image cannot be read.
        """
        parts = [self.encode(pixels) for pixels in self._prepared(images)]
        return torch.cat(parts) if parts else torch.empty(0, cast(int, self.encoder.feature_dim), device=self.device)

    def predict(self, images: Pictures, top: int | None = None) -> list[list[Prediction]]:
        """For each image its classes with their probabilities, best first; one image: a list of one.

        Probabilities are over the classes that the run has taught; other classes are left out.

        Args:
            top: at most so many classes of each image; None: all.

        Raises:
            ConfigError: an image cannot be read, or the reader was taught no class.
        """
        return [found for pixels in self._prepared(images) for found in self.read(self.encode(pixels), top)]

    def prepare(self, images: Pictures) -> np.ndarray:
        """Images as uint8 (n, 3, image_size, image_size), the pixels from which features are computed.

        Raises:
            ConfigError: an image cannot be read.
        """
        parts = list(self._prepared(images))
        return np.concatenate(parts) if parts else np.empty((0, 3, self.image_size, self.image_size), np.uint8)

    def _prepared(self, images: Pictures) -> Iterator[np.ndarray]:
        """As `prepare`, in batches."""
        numbers, about = count(), self.description
        for part in _batches(each(images)):
            size, resize = about.image_size, about.resize
            yield np.stack([pixels_of(one, size, about.background, next(numbers), resize) for one in part])

    @torch.no_grad()
    def encode(self, pixels: np.ndarray) -> Tensor:
        """Features float32 (n, d) of prepared images; ConfigError if they are not finite."""
        was_training = self.encoder.training
        self.encoder.eval()
        layout, parts = memory_format(self.encoder, self.device), []
        for start in range(0, len(pixels), BATCH):
            images = torch.from_numpy(pixels[start : start + BATCH]).to(self.device)
            parts.append(encode(self.encoder, images, self._moments, layout))
        self.encoder.train(was_training)
        features = torch.cat(parts)
        if not bool(features.isfinite().all()):
            raise ConfigError(
                "task", f"is {self.description.task}, whose features are not finite: the run has diverged"
            )
        return features

    @torch.no_grad()
    def read(self, features: Tensor, top: int | None = None) -> list[list[Prediction]]:
        """Predictions of features (n, d), as `predict` gives them."""
        if not self.taught:
            problem = "was taught no class by this run, so it would guess"
            raise ConfigError("reader", f"{problem}; allowed: a run with labels, or `features` alone")
        most = min(top or len(self.taught), len(self.taught))
        probabilities, order = self.reading(features).cpu().sort(dim=1, descending=True, stable=True)
        pairs = zip(probabilities[:, :most].tolist(), order[:, :most].tolist(), strict=True)
        return [[Prediction(self.class_names[c], p) for p, c in zip(*row, strict=True)] for row in pairs]


def _batches(pictures: Iterable[Any]) -> Iterator[Sequence[Any]]:
    rest = iter(pictures)
    while part := list(islice(rest, BATCH)):
        yield part
