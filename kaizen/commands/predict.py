"""`python -m kaizen predict RUN FILE...`: class names and probabilities of images, as a table or as JSON lines."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from kaizen.commands.parser import Parser, at_least
from kaizen.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from kaizen.takeaway.model import Model, Prediction

USAGE = "python -m kaizen predict RUN FILE... [--task N] [--reader R] [--top K] [--json] [--device D] [--trust-code]"
ABOUT = """Predict the classes of images with the model at the end of a task. RUN is a run directory, or a folder that
`export` wrote. A FILE is an image of any size and mode, or a directory, in which all images are found at any depth."""
CLOSING = """Probabilities are over the classes that the run was taught until then. Files that cannot be read are
named on stderr, the others are predicted, and the exit code is 2.

  python -m kaizen predict runs/digits-seed0 photo.png scans/
  python -m kaizen predict runs/digits-seed0 scans/ --json --top 1 > predictions.jsonl"""
WIDTH = 240
"""Characters per line if there is no terminal."""
CHUNK = 256
"""Images that are in memory at a time."""


def main(tokens: Sequence[str]) -> int:
    """Predict; returns 2 if a file could not be read, else 0.

    Raises:
        ConfigError: RUN has no such model, or no FILE is given that contains an image.
    """
    parser = Parser(USAGE, ABOUT, CLOSING)
    parser.add_argument("run", metavar="RUN", help="a run directory, or an exported folder")
    parser.add_argument("files", metavar="FILE", nargs="+", help="an image, or a directory of images")
    parser.add_argument("--task", type=at_least(0), metavar="N", help="number of the task [the last one finished]")
    parser.add_argument("--reader", default="classifier", metavar="R", help="classifier or statistics [classifier]")
    parser.add_argument("--top", type=at_least(1), default=3, metavar="K", help="classes of each image [3]")
    parser.add_argument("--json", action="store_true", help="one JSON object per image and line, instead of a table")
    parser.add_argument("--device", metavar="D", help="such as cpu, cuda or cuda:1 [cuda where there is a GPU]")
    parser.add_argument("--trust-code", action="store_true", help="run the file of an own encoder that RUN names")
    given = parser.parse_intermixed_args(tokens)  # files may stand on both sides of options
    files = [file for name in given.files for file in _images(Path(name))]
    # torch is loaded only for files that are there
    import torch

    from kaizen.parallel.launch import threads
    from kaizen.takeaway.load import load_model

    torch.set_num_threads(threads())
    task = -1 if given.task is None else given.task
    model = load_model(given.run, task, given.reader, trust_code=given.trust_code).to(_device(given.device))
    table, unread = _table(min(given.top, len(model.taught))), 0
    for file, found in _predicted(model, files, given.top, bar=not (given.json and sys.stdout.isatty())):
        if isinstance(found, ConfigError):
            unread += 1
            tqdm.write(f"error: {found.problem}", file=sys.stderr)
        elif given.json:
            named = [{"name": one.name, "probability": round(one.probability, 6)} for one in found]
            print(json.dumps({"file": str(file), "classes": named}), flush=True)
        else:
            table.add_row(str(file), *(f"{one.name}  {100 * one.probability:.1f} %" for one in found))
    if not given.json and table.row_count:
        console = Console(highlight=False, markup=False)
        if not console.is_terminal:
            console.width = WIDTH
        console.print(table)
    if unread:
        print(f"error: FILE: {unread} of {len(files)} images cannot be read", file=sys.stderr)
    return 2 if unread else 0


def _images(path: Path) -> Iterator[Path]:
    """The file itself, or the images of a directory by their endings, in order; hidden ones are left out.

    Raises:
        ConfigError: a directory contains no image.
    """
    if not path.is_dir():
        yield path  # one that is missing is reported among the others that cannot be read
        return
    from kaizen.data.files import image_suffixes

    known, found = image_suffixes(), False
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and Path(name).suffix.lower() in known:
                found = True
                yield Path(folder, name)
    if not found:
        raise ConfigError("FILE", f"is '{path}', a directory without images; allowed: images, or directories of images")


def _predicted(
    model: "Model", files: Sequence[Path], top: int, *, bar: bool
) -> Iterator[tuple[Path, "list[Prediction] | ConfigError"]]:
    """Each file with its predictions, or with what is wrong with it; `bar`: show one if stderr is a terminal."""
    import numpy as np

    with tqdm(total=len(files), desc="predicting", unit="img", disable=None if bar else True, leave=False) as progress:
        for start in range(0, len(files), CHUNK):
            pixels: list[np.ndarray | ConfigError] = []
            for file in files[start : start + CHUNK]:
                try:
                    pixels.append(model.prepare(file))
                except ConfigError as error:
                    pixels.append(error)
                progress.update()
            good = [held for held in pixels if not isinstance(held, ConfigError)]
            predictions = iter(model.read(model.encode(np.concatenate(good)), top) if good else [])
            for file, held in zip(files[start:], pixels, strict=False):
                yield file, held if isinstance(held, ConfigError) else next(predictions)


def _table(top: int) -> Table:
    table = Table()
    table.add_column("file", overflow="fold")
    for place in range(1, top + 1):
        table.add_column(f"{place}" if place > 1 else "best", overflow="fold")
    return table


def _device(name: str | None) -> "torch.device":
    """The device of that name; none: a GPU where there is one.

    Raises:
        ConfigError: there is no such device.
    """
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError("--device", f"is {name!r} ({reason}); allowed: cpu, or a device of this machine") from None
    return device
