"""Numbers that replace `auto`: those published for CIFAR-100, and different ones for smaller data.

They depend only on the keys and the data, so every process and every start finds the same.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from kaizen.cli.checks import check_pairs
from kaizen.config.schema import Config
from kaizen.config.types import AUTO
from kaizen.data.chapters import Chapters
from kaizen.data.load import Stream
from kaizen.data.replay import AUTO_LEAST
from kaizen.model.networks.fit import prefers_adamw
from kaizen.training.plan import SAFE_WARMUP

BATCH, LEAST_BATCH, LEAST_STEPS = 256, 32, 4
"""Images per step, as published; down to the second number if an epoch had fewer steps than the third."""
RATES = {"lars": (1.0, 0.1), "sgd": (0.4, 0.1), "adamw": (0.002, 0.001)}
"""Base rate at a batch of 256 and the classifier's rate, by optimizer."""
WARMUP_EPOCHS = 10
LEAST_RATE = 0.1
"""Part of the classifier's rate that is left if there is no warm-up."""
LARGEST_CIFAR_STEM = 64
"""Pixels per side up to which an encoder keeps the images' resolution in its first layer."""


@dataclass(frozen=True)
class Facts:
    """Facts about the data, which decide the numbers.

    images: training images of each task; smallest: labelled images of the smallest class of a task, 0 without labels;
    side: pixels per side of the images; resize: see `Source`.
    """

    images: tuple[int, ...]
    smallest: int
    side: int
    resize: int | None = None

    @staticmethod
    def of(stream: Stream) -> "Facts":
        """The facts about data that are cut into tasks."""
        counts = [np.bincount(labels[labels >= 0]) for task in stream.tasks if len(labels := stream.labels[task.train])]
        found = [int(count[count > 0].min()) for count in counts if count.any()]
        source = stream.source
        return Facts(tuple(stream.train_sizes), min(found, default=0), source.image_size, source.resize)


def suit(config: Config, facts: Facts) -> tuple[Config, list[str]]:
    """Replace each `auto` by a number; also a line for each number that is not the published one.

    Raises:
        ConfigError: a key does not fit these numbers.
    """
    optim, smallest, lines = config.optim, min(facts.images), list[str]()

    def choose(key: str, value: Any, published: Any, why: str) -> Any:
        section, _, name = key.partition(".")
        if (given := getattr(getattr(config, section), name)) != AUTO:
            return given
        if value != published:
            lines.append(f"{'auto':19} {key} {_text(value)}: {why}; published: {_text(published)}")
        return value

    encoder, adamw = config.encoder, prefers_adamw(config)
    stem = choose(
        "encoder.stem",
        "cifar" if facts.side <= LARGEST_CIFAR_STEM else "imagenet",
        "cifar",
        f"the images have {facts.side} pixels per side",
    )
    name = choose("optim.name", "adamw" if adamw else "lars", "lars", f"the encoder is {encoder.name}")
    rate, classifier_rate = RATES[name]
    batch = choose("optim.batch", _batch(smallest), BATCH, f"the smallest task has {smallest} images")
    used = min(batch, smallest)
    cut = f", and the smallest task cuts the batch to {used}" if used < batch else ""
    # With a number of images, the largest task has the fewest epochs.
    epochs = optim.epochs if optim.images is None else optim.images // max(facts.images)
    tenth = f"a tenth of {epochs} epoch{'s' * (epochs != 1)}"
    warmup = choose("optim.warmup_epochs", min(WARMUP_EPOCHS, epochs // 10), WARMUP_EPOCHS, tenth)
    why = f"the optimizer is {name}"
    warm_steps = warmup * (smallest // used)
    if optim.images is not None:
        warm_steps = min(warm_steps, optim.images // used)
    if name == "lars" and config.classifier.hidden and warm_steps < SAFE_WARMUP:
        # In proportion to the warm-up: at the full rate the classifier's hidden units may die.
        classifier_rate *= max(LEAST_RATE, warm_steps / SAFE_WARMUP)
        why = f"{warm_steps} steps of warm-up are few for hidden layers"
    decay = 0.05 if adamw and name == "adamw" else 1e-5
    chosen = {
        "name": name,
        "batch": batch,
        "lr": choose("optim.lr", rate * used / batch, RATES["lars"][0], f"the optimizer is {name}{cut}"),
        "classifier_lr": choose("optim.classifier_lr", classifier_rate, RATES["lars"][1], why),
        "weight_decay": choose("optim.weight_decay", decay, 1e-5, f"the encoder is {encoder.name}"),
        "warmup_epochs": warmup,
    }
    kind, part = config.replay_budget()
    few_images = max(1, round(part * facts.smallest))
    if kind == AUTO and config.replay.policy != "none" and facts.smallest and few_images < AUTO_LEAST:
        few = f"{part:.0%} of the smallest class's {facts.smallest} images is {few_images}"
        lines.append(f"{'auto':19} replay at least {AUTO_LEAST} images per class: {few}; published: {part:.0%}")
    optim, encoder = optim.model_copy(update=chosen), encoder.model_copy(update={"stem": stem})
    suited = config.model_copy(update={"optim": optim, "encoder": encoder})
    suited = suited.with_store("pixels" if facts.resize is None else "files", facts.resize)
    check_pairs(suited)
    return suited, lines


def suit_chapters(chapters: Chapters) -> tuple[Chapters, list[str]]:
    """The chapters with `suit` applied to the run's own; those of extensions got their numbers when they were added."""
    own, lines = chapters.parts[0], list[str]()
    config = own.config
    if own.stream is not None:
        config, lines = suit(config, Facts.of(own.stream))
    return chapters.of_config(config), lines


def _batch(smallest: int) -> int:
    """Images per step: the published number, or the power of two that gives the smallest task LEAST_STEPS per epoch."""
    power = 1 << max(1, smallest // LEAST_STEPS).bit_length() - 1
    return min(BATCH, max(LEAST_BATCH, power), smallest)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
