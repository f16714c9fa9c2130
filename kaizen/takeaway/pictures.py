"""The images that users hand in: files, PIL images, arrays and tensors, as the data path would have stored them."""

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeAlias, Union

import numpy as np
import torch
from torch import Tensor

from kaizen.data.decoding import Decoding, centre, centre_square
from kaizen.data.images import bytes_of, decode_image, reason_of, square, upright_rgb
from kaizen.data.measured import shape_of
from kaizen.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

Picture: TypeAlias = Union["Image.Image", np.ndarray, Tensor, str, os.PathLike[str]]
Pictures: TypeAlias = Picture | Iterable[Picture]
ALLOWED = (
    "file names, PIL images, arrays uint8 (h, w) or (h, w, channels), tensors (channels, h, w) of uint8 or of floats "
    "0..1, or lists of these; channels: 1, 3 (RGB) or 4 (RGBA)"
)
CHANNELS = (1, 3, 4)


def each(pictures: Pictures) -> Iterator[Picture]:
    """The single picture, or every one of several: of a list, or of an array or tensor with a dimension more.

    Raises:
        ConfigError: it is neither.
    """
    from PIL import Image

    if isinstance(pictures, np.ndarray | Tensor):
        yield from pictures if pictures.ndim == 4 else [pictures]
    elif isinstance(pictures, str | os.PathLike | Image.Image):
        yield pictures
    elif isinstance(pictures, Iterable) and not isinstance(pictures, bytes | dict):
        yield from pictures
    else:
        raise ConfigError("images", f"are of type {type(pictures).__name__}; allowed: {ALLOWED}")


def pixels_of(picture: Picture, size: int, background: str, number: int = 0, resize: int | None = None) -> np.ndarray:
    """One picture as uint8 (3, size, size), as training and evaluation see it.

    Args:
        size: side in pixels of the centre that is cropped; resize: the shorter side before that, None: the same.
        background: colour behind transparent pixels.
        number: position of the picture in its list, for messages.

    Raises:
        ConfigError: it cannot be read, or is none of ALLOWED.
    """
    from PIL import Image

    named = isinstance(picture, str | os.PathLike)
    try:
        if isinstance(picture, str | os.PathLike):
            row = {"bytes": None, "path": os.fspath(picture)}
            if resize is not None:
                content = bytes_of(row)
                return centre(content, shape_of(content), Decoding(size, resize, background)).transpose(2, 0, 1)
            image = decode_image(row, background)[0]
        elif isinstance(picture, Image.Image):
            image = upright_rgb(picture, background)[0]
        else:
            image = upright_rgb(Image.fromarray(_levels(picture)), background)[0]
        if resize is not None:
            return centre_square(np.array(image), size, resize).transpose(2, 0, 1)
        return square(image, size)
    except (MemoryError, ConfigError):
        raise
    except Exception as error:  # PIL's readers raise many kinds of exceptions for broken files
        where = f"{os.fspath(picture)}: " if named else f"number {number}: "  # type: ignore[arg-type]
        raise ConfigError("images", f"{where}cannot be read ({reason_of(error)})") from error


def _levels(picture: object) -> np.ndarray:
    """An array or tensor as uint8 (h, w) or (h, w, 3 or 4); ValueError if it is no image."""
    if isinstance(picture, Tensor):
        tensor = picture.detach().cpu()
        if tensor.is_floating_point():
            tensor = tensor.float()
            if not bool(((tensor >= 0) & (tensor <= 1)).all()):
                raise ValueError("a tensor of floats has values outside 0..1; allowed: images that are not normalised")
            tensor = (tensor * 255).round().to(torch.uint8)
        if tensor.ndim == 3 and tensor.shape[0] not in CHANNELS:
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)}; allowed: {ALLOWED}")
        levels = (tensor.permute(1, 2, 0) if tensor.ndim == 3 else tensor).contiguous().numpy()
    elif isinstance(picture, np.ndarray):
        levels = picture
    else:
        raise ValueError(f"a value of type {type(picture).__name__}; allowed: {ALLOWED}")
    is_image = levels.ndim == 2 or (levels.ndim == 3 and levels.shape[2] in CHANNELS)
    if levels.dtype != np.uint8 or not is_image or not levels.size:
        raise ValueError(f"{levels.dtype} of shape {levels.shape}; allowed: {ALLOWED}")
    return levels[:, :, 0] if levels.ndim == 3 and levels.shape[2] == 1 else levels
