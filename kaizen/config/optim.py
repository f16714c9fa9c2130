"""Section `optim`: the optimizer, its learning rates and its steps."""

from typing import Annotated, Literal

from pydantic import Field

from kaizen.config.types import AUTO, Auto, Count, NonNegative, Positive, Section


class OptimConfig(Section):
    name: Literal["auto", "sgd", "lars", "adamw"] = Field(AUTO, description="optimizer; auto: lars, and adamw for ViTs")
    lr: Auto[Positive] = Field(
        AUTO,
        examples=[0.5],
        description="base rate, scaled by batch / 256; auto: 1 for lars, 0.4 for sgd, 0.002 for adamw, lower if the "
        "smallest task limits the batch",
    )
    classifier_lr: Auto[Positive] = Field(
        AUTO,
        examples=[0.1],
        description="rate of the classifier, not scaled; auto: 0.1, less for lars with few steps of warm-up, and 0.001 "
        "for adamw",
    )
    weight_decay: Auto[NonNegative] = Field(
        AUTO,
        examples=[1e-5],
        description="weight decay (none on the classifier, embeddings and, with exclude_1d, 1-D parameters); auto: "
        "1e-5, and 0.05 for ViTs with adamw",
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="momentum of SGD and LARS")
    eta: Positive = Field(0.02, description="trust coefficient of LARS")
    exclude_1d: bool = Field(
        True,
        description="leave 1-D parameters (biases, norms) out of weight decay and of LARS's adaptation; false: treat "
        "them as the others",
    )
    epochs: Count = Field(500, description="epochs per task; 1: each image is seen once")
    images: Count | None = Field(
        None,
        description="training images per task, repeated ones included, instead of epochs: the task has as many steps "
        "as they fill; null: epochs decide",
    )
    batch: Auto[Annotated[int, Field(ge=2)]] = Field(
        AUTO,
        examples=[256],
        description="images per optimizer step, over all processes and accumulation, replay excluded; auto: 256, or "
        "less where a task has fewer than four times as many images",
    )
    warmup_epochs: Auto[Annotated[int, Field(ge=0)]] = Field(
        AUTO,
        examples=[10],
        description="epochs of linear warm-up at the start of each task, with optim.images at most all its steps; "
        "auto: a tenth of the epochs, at most 10",
    )
    min_lr: NonNegative = Field(0.0, description="rate at the end of the cosine schedule")
