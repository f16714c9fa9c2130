"""Sources known by name.

Nothing heavy is imported: the configuration check reads them before any data is touched.
"""

from dataclasses import dataclass

from kaizen.config.types import AUTO

SMALL = 64
"""Pixels per side up to which square images are stored as pixels, unless the configuration says otherwise."""


@dataclass(frozen=True)
class KnownSource:
    """A source known by name: classes, images of split `train`, side in pixels, hub id (None: built in), columns."""

    classes: int
    train_images: int
    image_size: int
    hub: str | None
    image_column: str
    label_column: str

    def stored(self, store: str) -> str:
        """Value of data.store, pixels or files, that `store` means for this source; see there for auto."""
        small = "pixels" if self.image_size <= SMALL else "files"
        return small if store == AUTO else store


KNOWN_SOURCES: dict[str, KnownSource] = {
    "digits": KnownSource(10, 1438, 8, None, "image", "label"),
    "cifar10": KnownSource(10, 50000, 32, "uoft-cs/cifar10", "img", "label"),
    "cifar100": KnownSource(100, 50000, 32, "uoft-cs/cifar100", "img", "fine_label"),
    "imagenet100": KnownSource(100, 126689, 224, "clane9/imagenet-100", "image", "label"),
    "imagenet1k": KnownSource(1000, 1281167, 224, "ILSVRC/imagenet-1k", "image", "label"),
    "tinyimagenet": KnownSource(200, 100000, 64, "zh-plus/tiny-imagenet", "image", "label"),
    "stl10": KnownSource(10, 5000, 96, "jxie/stl10", "image", "label"),
    "domainnet": KnownSource(345, 409832, 224, "wltjr1007/DomainNet", "image", "label"),
    "fashion_mnist": KnownSource(10, 60000, 28, "zalando-datasets/fashion_mnist", "image", "label"),
}
