"""Sections data, stream and labels: what is read, how it is cut into tasks, which labels are used."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from kaizen.config.types import AUTO, Auto, Count, Positive, Probability, Section, Seed, Text, Word


def parts_of(split: str) -> list[str]:
    """Names of the splits that a sum of splits is made of, as train and extra of `train+extra`."""
    return split.split("+")


def _summed(split: str) -> str:
    """A split or a sum of splits, unchanged; ValueError if a sum lacks a name or has one twice."""
    names = parts_of(split)
    if len(names) > 1 and ("" in names or len(set(names)) < len(names)):
        raise ValueError(f"is {split!r}; allowed: one split, or different ones with + between them, as train+extra")
    return split


Splits = Annotated[str, AfterValidator(_summed)]


class DataConfig(Section):
    source: str = Field(
        "digits",
        description="digits, cifar10, cifar100, imagenet100, imagenet1k, tinyimagenet, stl10, domainnet, "
        "fashion_mnist, hub:OWNER/NAME, parquet:DIR, imagefolder:DIR, disk:DIR",
    )
    config: Text | None = Field(None, description="configuration of a hub source; null: its default")
    revision: Text | None = Field(None, description="branch, tag or commit of a hub source; null: main")
    store: Auto[Literal["pixels", "files"]] = Field(
        AUTO,
        description="pixels: images are decoded once, as squares of image_size; files: they stay encoded, and each "
        "view is cropped from the original; auto: pixels for squares up to 64 pixels",
    )
    workers: Count | None = Field(
        None, description="threads that decode, with store files; null: as many as the process computes with"
    )
    image_size: int | None = Field(
        None, ge=4, le=1024, description="side of the images in pixels; null: as in the data"
    )
    image_column: str | None = Field(None, description="column of the images; null: found by type")
    label_column: str | None = Field(None, description="column of the labels; null: found by type")
    domain_column: str | None = Field(None, description="column of the domains; null: none")
    task_column: Text | None = Field(
        None, description="column that tells the task of each image, for stream.kind column"
    )
    train_split: Splits = Field(
        "train", description="split for training; train+extra: both, one after the other", examples=["train+extra"]
    )
    test_split: Splits = Field("test", description="split for evaluation, or several, as for train_split")
    test_fraction: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="for data without a test split: fraction of each class's training images that is held out for "
        "evaluation, instead of test_split; always the same images; null: nothing is held out",
    )
    nested: bool = Field(
        False, description="imagefolder: images at any depth below a class directory belong to the class"
    )
    background: Literal["white", "black"] = Field("white", description="colour behind transparent images")
    broken: Literal["error", "skip"] = Field("error", description="images that cannot be read: an error, or left out")
    cache_dir: Text | None = Field(
        None, description="where pixels or an index of files are kept; null: ~/.cache/kaizen"
    )
    normalize: Literal["dataset"] | tuple[tuple[float, float, float], tuple[Positive, Positive, Positive]] = Field(
        "dataset", description="dataset: mean and std of the training images; or [[mean x 3], [std x 3]] of levels 0..1"
    )

    @property
    def splits(self) -> dict[str, str]:
        """Splits or sums of splits to read, by their keys: training, and test unless that is held out."""
        train = {"data.train_split": self.train_split}
        return train if self.test_fraction is not None else train | {"data.test_split": self.test_split}


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
