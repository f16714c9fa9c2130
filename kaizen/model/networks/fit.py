"""Checks, before any work and without the data, that keys fit the encoder and that a ViT's patches fit the images."""

from kaizen.config.encoder import ENCODERS, EncoderConfig
from kaizen.config.schema import Config
from kaizen.config.types import AUTO
from kaizen.errors import ConfigError
from kaizen.plugins import own_class

RESNET_KEYS = ("stem", "stem_padding", "norm", "width")
VIT_KEYS = ("patch",)
NO_STEM = "cifar"
"""What encoder.stem holds for an encoder that has none."""
PATCHES = ((160, 16), (64, 8), (24, 4), (0, 2))
"""Images of at least so many pixels a side are cut into patches of that side, or of the next one that divides."""


def is_vit(name: str) -> bool:
    """Whether an encoder's name is that of a ViT."""
    return name.startswith("vit_")


def is_own(name: str) -> bool:
    """Whether an encoder is the user's own."""
    return name not in ENCODERS.words


def family(name: str) -> str:
    """Encoders of one family take the same keys."""
    return name if is_own(name) else "vit" if is_vit(name) else "resnet"


def fit_encoder(config: Config, own_size: int | None) -> Config:
    """The configuration with the image side and the patch side that a ViT is built for; with a ResNet as it is.

    Args:
        own_size: side in pixels of the source's images, where it is known without reading them.

    Raises:
        ConfigError: a key belongs to the other kind of encoder, the images' side is not known, or the patch does not
            divide the side of the images or of a small crop.
    """
    encoder = config.encoder
    if is_own(encoder.name):
        return config.model_copy(update={"encoder": _fit_own(encoder)})
    if is_vit(encoder.name) and encoder.stem == AUTO:
        encoder = encoder.model_copy(update={"stem": NO_STEM})
    for key in RESNET_KEYS if is_vit(encoder.name) else VIT_KEYS:
        found, default = getattr(encoder, key), EncoderConfig.model_fields[key].default
        default = NO_STEM if key == "stem" else default
        if found != default:
            allowed = "null" if default is None else default
            raise ConfigError(f"encoder.{key}", f"is {found}; allowed: {allowed}, as {encoder.name} has no {key}")
    if not is_vit(encoder.name):
        return config
    size = config.data.image_size or own_size
    if size is None:
        problem = f"is null; {encoder.name} needs the side of the images, which {config.data.source} does not say"
        raise ConfigError("data.image_size", f"{problem}; allowed: a number")
    patch = encoder.patch or next((patch for least, patch in PATCHES if size >= least and size % patch == 0), None)
    if patch is None or size % patch:
        divisors = ", ".join(str(side) for side in range(1, size + 1) if size % side == 0)
        found = "null" if encoder.patch is None else encoder.patch
        raise ConfigError("encoder.patch", f"is {found}; allowed for images of {size} pixels: {divisors}")
    for number, view in enumerate(config.views):
        if view.size is not None and view.size % patch:
            problem = f"is {view.size}; allowed: multiples of {patch}, the side of {encoder.name}'s patches"
            raise ConfigError(f"views.{number}.size", problem)
    built = {
        "encoder": encoder.model_copy(update={"patch": patch}),
        "data": config.data.model_copy(update={"image_size": size}),
    }
    return config.model_copy(update=built)


def _fit_own(encoder: EncoderConfig) -> EncoderConfig:
    """An own encoder's section, in which keys of ours that it does not read have their defaults."""
    reads = own_class("encoder.name", encoder.name).keys  # type: ignore[attr-defined]
    if encoder.stem == AUTO and "stem" not in reads:
        encoder = encoder.model_copy(update={"stem": NO_STEM})
    for key in {*RESNET_KEYS, *VIT_KEYS} - {*reads}:
        found = getattr(encoder, key)
        default = NO_STEM if key == "stem" else EncoderConfig.model_fields[key].default
        if found != default:
            problem = f"is {found}, which {encoder.name} does not read"
            raise ConfigError(f"encoder.{key}", f"{problem}; allowed: {default} (what it reads is in its `keys`)")
    return encoder


def check_deterministic(config: Config, device: str) -> None:
    """Refuse run.deterministic where a GPU has no kernel for it.

    Raises:
        ConfigError: small crops of a ViT, whose position embedding is interpolated.
    """
    if config.run.deterministic and device == "cuda" and is_vit(config.encoder.name):
        for number, view in enumerate(config.views):
            if view.size is not None and view.size != config.data.image_size:
                problem = f"is {view.size}; allowed with run.deterministic and {config.encoder.name} on a GPU: "
                raise ConfigError(f"views.{number}.size", f"{problem}{config.data.image_size}, the images' own side")
