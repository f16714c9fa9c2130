"""Sections `replay` and `statistics`: what is remembered of past tasks, as images and as numbers."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from kaizen.config.types import Count, OneOf, Positive, Probability, Section

BUDGETS = ("per_class", "fraction", "total", "bytes")
"""Keys of section `replay` that say how much the memory holds; one of them at a time."""
POLICIES = OneOf("replay.policy", ("none", "random", "first", "herding", "reservoir"))


class ReplayConfig(Section):
    policy: Annotated[str, POLICIES] = Field(
        "random",
        description="images kept: none, random (class-balanced), first (of each class), herding (images whose "
        "mean features follow those of their class), reservoir (uniform over all images seen, needs total or bytes)",
    )
    per_class: Count | None = Field(None, description="images kept per class")
    fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="fraction kept of each class, at least one image; without any of these four: 0.01, at "
        "least 5 images",
    )
    total: Count | None = Field(
        None, description="images kept in total, divided evenly among the classes seen (not with reservoir)"
    )
    bytes: Count | None = Field(
        None, description="bytes of images and statistics together: statistics are paid first, images from the rest"
    )
    batch: int = Field(32, ge=1, le=65536, description="replay images per step, over all processes; not with mix lump")
    mix: Literal["none", "lump"] = Field(
        "none",
        description="none: replay images join a step beside the current ones; lump: each current image is mixed with "
        "one of the memory's",
    )
    mix_alpha: Positive = Field(
        0.4, description="with mix lump, the part of a current image is drawn from Beta(alpha, alpha)"
    )
    mix_share: Literal["image", "step"] = Field(
        "image", description="with mix lump, this part is drawn for each image, or once per step for all of them"
    )

    @model_validator(mode="after")
    def _one_budget(self) -> "ReplayConfig":
        given = [key for key in BUDGETS if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are given; only one of {', '.join(BUDGETS)} is allowed")
        return self


class StatisticsConfig(Section):
    keep: bool = Field(
        True, description="keep means and covariance of the features of past classes, carried from encoder to encoder"
    )
    ridge: Positive = Field(
        0.003, description="how strongly the map between two encoders is held to the identity, in mean variances"
    )
    prior: Positive = Field(
        5.0, description="a class of n replay images corrects its mapped mean by n / (n + prior) of what the map missed"
    )
    memory_share: Positive = Field(
        1.0, description="weight of all replay images in the fit of that map, relative to the task's own images"
    )
    shrinkage: Probability = Field(
        0.02, description="share of the mean variance in the covariance of the LDA classifier"
    )
