"""Sections data, stream and labels: what is read, how it is cut into tasks, which labels are used."""

from typing import Annotated, Literal

from pydantic import Field

from kaizen.config.types import Count, Positive, Probability, Section, Seed, Text, Word


class DataConfig(Section):
    source: str = Field(
        "digits",
        description="digits, cifar10, cifar100, imagenet100, imagenet1k, tinyimagenet, stl10, domainnet, "
        "fashion_mnist, hub:OWNER/NAME, parquet:DIR, imagefolder:DIR, disk:DIR",
    )
    config: Text | None = Field(None, description="configuration of a hub source; null: its default")
    revision: Text | None = Field(None, description="branch, tag or commit of a hub source; null: main")
    image_size: int | None = Field(
        None, ge=4, le=1024, description="side of the images in pixels; null: as in the data"
    )
    image_column: str | None = Field(None, description="column of the images; null: found by type")
    label_column: str | None = Field(None, description="column of the labels; null: found by type")
    domain_column: str | None = Field(None, description="column of the domains; null: none")
    task_column: Text | None = Field(
        None, description="column that tells the task of each image, for stream.kind column"
    )
    train_split: str = Field("train", description="split for training")
    test_split: str = Field("test", description="split for evaluation")
    background: Literal["white", "black"] = Field("white", description="colour behind transparent images")
    broken: Literal["error", "skip"] = Field("error", description="images that cannot be read: an error, or left out")
    cache_dir: Text | None = Field(None, description="where decoded images are kept; null: ~/.cache/kaizen")
    normalize: Literal["dataset"] | tuple[tuple[float, float, float], tuple[Positive, Positive, Positive]] = Field(
        "dataset", description="dataset: mean and std of the training images; or [[mean x 3], [std x 3]] of levels 0..1"
    )


class StreamConfig(Section):
    kind: Literal["class", "data", "domain", "column", "joint"] = Field(
        "class",
        description="class: each task brings new classes; data: random parts of the images; domain: one task per "
        "domain; column: one task per value of data.task_column; joint: everything in one task",
    )
    tasks: Count = Field(
        5,
        description="number of tasks (joint: always 1; domain and column: as many as the data have; with classes or "
        "sizes: as many as these)",
    )
    seed: Seed = Field(5, description="seed of the split into tasks (5: the released split)")
    domains: Annotated[tuple[Text, ...], Field(min_length=1)] | None = Field(
        None,
        description="domains in the order of their tasks, for kind domain; null: all, sorted",
        examples=["real,sketch"],
    )
    classes: Annotated[tuple[Annotated[tuple[Word, ...], Field(min_length=1)], ...], Field(min_length=1)] | None = (
        Field(
            None,
            description="classes of each task by hand, as [[cat,dog],[car]], by name or number; images of other "
            "classes are left out; for kind class, or joint: only these classes; null: chosen by seed",
            examples=["[[cat,dog],[car]]"],
        )
    )
    sizes: Annotated[tuple[Count, ...], Field(min_length=1)] | None = Field(
        None,
        description="size of each task, as 50,10,10: number of classes for kind class, of training images for kind "
        "data; what remains is left out; null: even tasks",
        examples=["50,10,10"],
    )


class LabelsConfig(Section):
    fraction: Probability = Field(
        1.0, description="fraction of each class's training images whose label is used; the rest has label -1"
    )
    seed: Seed = Field(0, description="seed of the choice of labelled images")
