"""Section encoder."""

from typing import Annotated, Literal

from pydantic import Field

from kaizen.config.types import AUTO, OneOf, Section, Text

OWN = ("resnet18", "resnet34", "resnet50", "vit_tiny", "vit_small", "vit_base")
"""Names of the encoders that this package builds itself."""
TIMM = "timm:"
ENCODERS = OneOf("encoder.name", OWN, (TIMM,))


class EncoderConfig(Section):
    name: Annotated[str, ENCODERS] = Field(
        "resnet18",
        description=f"architecture: {', '.join(OWN)}, or timm:NAME, any model of timm that gives one vector of "
        "features per image; ViTs are meant for optim.name adamw",
    )
    weights: Text | None = Field(
        None,
        description="weights that task 0 starts from: FILE.safetensors (also student.safetensors of another run), "
        "hub:OWNER/NAME[:FILE], or auto: those that timm publishes for the architecture; null: random ones",
    )
    freeze: int = Field(
        0,
        ge=0,
        description="number of first blocks that are not trained, and the stem with them: 1 to 4 stages of a ResNet, "
        "1 to 12 blocks of a ViT; stages or blocks of a timm model",
    )
    drop_path: float = Field(
        0,
        ge=0,
        lt=1,
        description="ViTs, and models of timm that have it; share of images that skip a residual branch in training "
        "(stochastic depth), from 0 at the first block to this at the last",
    )
    stem: Literal["auto", "cifar", "imagenet"] = Field(
        AUTO,
        description="ResNets; cifar: 3x3 stride 1, no max-pool; imagenet: 7x7 stride 2 with max-pool; auto: cifar for "
        "images of up to 64 pixels",
    )
    stem_padding: int = Field(1, ge=0, le=3, description="ResNets; padding of the cifar stem (2 in the released code)")
    norm: Literal["batch", "group"] = Field("batch", description="ResNets; normalisation layers")
    width: int = Field(64, ge=1, le=1024, description="ResNets; channels of the first stage")
    patch: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="ViTs; side of a patch in pixels, a divisor of the side of images and of small crops; null: 16 "
        "for images of 160 pixels or more, 8 from 64, 4 from 24, else 2, or the next of these that is a divisor",
    )
