"""What an encoder of the user's own has, beside the layers."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from kaizen.config.encoder import EncoderConfig
from kaizen.errors import ConfigError
from kaizen.plugins import own_class


class Encoder(nn.Module, ABC):
    """Images (n, 3, h, w), normalised -> features (n, feature_dim).

    The constructor sets `feature_dim` and makes the layers; torch's global generator is seeded then. It gets its
    section of the configuration and the side of the images in pixels, or None where only the data say it.
    """

    Settings: ClassVar[type[EncoderConfig]] = EncoderConfig
    """Keys of section `encoder`: a class that extends EncoderConfig where it has more than those."""
    keys: ClassVar[tuple[str, ...]] = ()
    """Keys of EncoderConfig that it reads, such as width; others may not be given."""
    mixes_images: bool = True
    """Whether an image's features depend on the others of a batch, as with BatchNorm; views are then kept apart."""
    block_names: tuple[str, ...] = ()
    """Class names of its repeated blocks, which FSDP shards and torch.compile compiles one by one; none: as a whole."""
    plain: tuple[str, ...] = ()
    """Names of parameters that are neither decayed nor adapted by LARS, in addition to one-dimensional ones."""
    feature_dim: int

    def __init__(self, config: EncoderConfig, image_size: int | None) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Images (n, 3, h, w) -> features (n, feature_dim)."""


def build_own(config: EncoderConfig, image_size: int | None) -> Encoder:
    """The user's own encoder, freshly initialised.

    Raises:
        ConfigError: it does not say how many features it gives.
    """
    kind: type[Encoder] = own_class("encoder.name", config.name)
    encoder = kind(config, image_size)
    if type(getattr(encoder, "feature_dim", None)) is not int:
        problem = f"is {config.name!r}, whose constructor sets no whole number feature_dim"
        raise ConfigError("encoder.name", f"{problem}; allowed: self.feature_dim = 128 for features (n, 128)")
    return encoder
