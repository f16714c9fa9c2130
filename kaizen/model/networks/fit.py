"""Checks, before any work and without the data, that keys fit the encoder and that the encoder fits the images."""

from kaizen.config.encoder import ENCODERS, TIMM, EncoderConfig
from kaizen.config.schema import Config
from kaizen.config.types import AUTO
from kaizen.errors import ConfigError
from kaizen.plugins import own_class

KEYS = {
    "resnet": ("stem", "stem_padding", "norm", "width"),
    "vit": ("patch", "drop_path"),
    "timm": ("drop_path",),
    "own": (),
}
"""Keys that do not apply to every kind of encoder."""
BLOCKS = {"resnet": 4, "vit": 12, "own": 0}
"""Stages or blocks that can be frozen."""
NO_STEM = "cifar"
"""What encoder.stem holds for an encoder that has none."""
PATCHES = ((160, 16), (64, 8), (24, 4), (0, 2))
"""Images of at least so many pixels a side are cut into patches of that side, or of the next one that divides."""


def kind_of(name: str) -> str:
    """The kind of encoder that a name belongs to: resnet, vit, timm or, the user's own, own."""
    if name not in ENCODERS.words:
        return "timm" if name.startswith(TIMM) else "own"
    return "vit" if name.startswith("vit_") else "resnet"


def is_vit(name: str) -> bool:
    """Whether an encoder's name is that of one of our ViTs."""
    return kind_of(name) == "vit"


def family(name: str) -> str:
    """Encoders of one family take the same keys."""
    return name if kind_of(name) == "own" else kind_of(name)


def fit_encoder(config: Config, own_size: int | None) -> Config:
    """The configuration with the image side, the patch side and the source of weights that the encoder is built with.

    Args:
        own_size: side in pixels of the source's images, where it is known without reading them.

    Raises:
        ConfigError: a key belongs to another kind of encoder, the images' side is not known, or the encoder does not
            take images or small crops of that side, has fewer blocks than are to be frozen, or has no such weights.
    """
    kind = kind_of(config.encoder.name)
    if kind == "own":
        config = config.model_copy(update={"encoder": _fit_own(config.encoder)})
    else:
        config = _without_others_keys(config, kind)
    if kind in ("resnet", "own"):
        blocks = BLOCKS[kind]
    else:
        size = config.data.image_size or own_size
        if size is None:
            problem = f"is null; {config.encoder.name} needs the side of the images, which {config.data.source} does"
            raise ConfigError("data.image_size", f"{problem} not say; allowed: a number")
        config = config.model_copy(update={"data": config.data.model_copy(update={"image_size": size})})
        blocks = _fit_timm(config, size) if kind == "timm" else BLOCKS[kind]
        config = _with_patch(config, size) if kind == "vit" else config
    encoder = config.encoder
    if encoder.freeze > blocks:
        problem = f"is {encoder.freeze}; allowed for {encoder.name}: 0 to {blocks}"
        raise ConfigError("encoder.freeze", problem if blocks else f"{problem}, as its blocks have no names")
    if encoder.weights is None:
        return config
    from kaizen.model.networks.weights import named_source

    named = encoder.model_copy(update={"weights": named_source(encoder)})
    return config.model_copy(update={"encoder": named})


def _without_others_keys(config: Config, kind: str) -> Config:
    """The configuration, if no key of another kind of encoder is given."""
    encoder = config.encoder
    if kind != "resnet" and encoder.stem == AUTO:
        encoder = encoder.model_copy(update={"stem": NO_STEM})
    for key in sorted({key for keys in KEYS.values() for key in keys} - {*KEYS[kind]}):
        found, default = getattr(encoder, key), EncoderConfig.model_fields[key].default
        default = NO_STEM if key == "stem" else default
        if found != default:
            allowed = "null" if default is None else default
            why = "timm fixes it by the name" if kind == "timm" else f"{encoder.name} has no {key}"
            raise ConfigError(f"encoder.{key}", f"is {found}; allowed: {allowed}, as {why}")
    return config.model_copy(update={"encoder": encoder})


def _fit_timm(config: Config, size: int) -> int:
    """Blocks of a model of timm that takes these images and small crops."""
    from kaizen.model.networks.timm_encoder import probe

    crops = {view.size for view in config.views if view.size is not None} - {size}
    return probe(config.encoder.name, size, tuple(sorted(crops)), config.encoder.drop_path).blocks


def _with_patch(config: Config, size: int) -> Config:
    """The configuration with the side of a ViT's patches, which divides images and small crops."""
    encoder = config.encoder
    patch = encoder.patch or next((patch for least, patch in PATCHES if size >= least and size % patch == 0), None)
    if patch is None or size % patch:
        divisors = ", ".join(str(side) for side in range(1, size + 1) if size % side == 0)
        found = "null" if encoder.patch is None else encoder.patch
        raise ConfigError("encoder.patch", f"is {found}; allowed for images of {size} pixels: {divisors}")
    for number, view in enumerate(config.views):
        if view.size is not None and view.size % patch:
            problem = f"is {view.size}; allowed: multiples of {patch}, the side of {encoder.name}'s patches"
            raise ConfigError(f"views.{number}.size", problem)
    return config.model_copy(update={"encoder": encoder.model_copy(update={"patch": patch})})


def prefers_adamw(config: Config) -> bool:
    """Whether the encoder is of a kind that is trained with AdamW: ViTs, and models of timm without BatchNorm."""
    if kind_of(config.encoder.name) != "timm":
        return is_vit(config.encoder.name)
    from kaizen.model.networks.timm_encoder import probe

    assert config.data.image_size is not None
    return not probe(config.encoder.name, config.data.image_size).has_batch_norm


def _fit_own(encoder: EncoderConfig) -> EncoderConfig:
    """An own encoder's section, in which keys of ours that it does not read have their defaults."""
    reads = own_class("encoder.name", encoder.name).keys  # type: ignore[attr-defined]
    if encoder.stem == AUTO and "stem" not in reads:
        encoder = encoder.model_copy(update={"stem": NO_STEM})
    for key in {key for keys in KEYS.values() for key in keys} - {*reads}:
        found = getattr(encoder, key)
        default = NO_STEM if key == "stem" else EncoderConfig.model_fields[key].default
        if found != default:
            problem = f"is {found}, which {encoder.name} does not read"
            raise ConfigError(f"encoder.{key}", f"{problem}; allowed: {default} (what it reads is in its `keys`)")
    return encoder


def check_deterministic(config: Config, device: str) -> None:
    """Refuse run.deterministic where a GPU has no kernel for it.

    Raises:
        ConfigError: small crops of a ViT, whose position embedding is interpolated; a model of timm may be one.
    """
    if config.run.deterministic and device == "cuda" and kind_of(config.encoder.name) != "resnet":
        for number, view in enumerate(config.views):
            if view.size is not None and view.size != config.data.image_size:
                problem = f"is {view.size}; allowed with run.deterministic and {config.encoder.name} on a GPU: "
                raise ConfigError(f"views.{number}.size", f"{problem}{config.data.image_size}, the images' own side")
