"""`python -m kaizen export RUN --out DIR`: a folder with the model of a run, to be used without this trainer."""

import argparse
import re
from collections.abc import Sequence

from kaizen.commands.parser import Parser, at_least
from kaizen.errors import ConfigError
from kaizen.run.places import user_path

USAGE = "python -m kaizen export RUN --out DIR [--task N] [--no-onnx] [--license ID] [--push OWNER/NAME [--public]]"
ABOUT = """Write the model at the end of a task of RUN to the new directory DIR: model.safetensors, encoder.safetensors,
config.json, model.onnx and a card, README.md, which tells the data, the protocol, the accuracies and how to load it
with kaizen, torchvision, timm or onnxruntime. DIR is complete or absent, and RUN is only read."""
CLOSING = """  python -m kaizen export runs/digits-seed0 --out exported/digits
  python -m kaizen predict exported/digits image.png
  python -m kaizen export RUN --out DIR --license apache-2.0 --push my-group/my-model      # after `hf auth login`"""


def main(tokens: Sequence[str]) -> int:
    """Write the folder, and upload it where that is asked for.

    Raises:
        ConfigError: RUN has no such model, DIR is taken or cannot be written, or the hub refuses.
    """
    parser = Parser(USAGE, ABOUT, CLOSING)
    parser.add_argument("run", metavar="RUN", help="a run directory")
    parser.add_argument("--out", metavar="DIR", required=True, help="a new or an empty directory")
    parser.add_argument("--task", type=at_least(0), metavar="N", help="number of the task [the last one finished]")
    parser.add_argument(
        "--onnx",
        action=argparse.BooleanOptionalAction,
        help="whether to write model.onnx, which needs the packages onnx and onnxscript [where they are installed]",
    )
    parser.add_argument(
        "--license", type=_licence, default="unknown", metavar="ID", help="of the weights, for the card [unknown]"
    )
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload DIR to this repository of the Hugging Face hub")
    parser.add_argument("--public", action="store_true", help="with --push: a new repository is public [private]")
    given = parser.parse_args(tokens)
    folder = user_path("--out", given.out)
    if given.public and not given.push:
        raise ConfigError("--public", "is given without --push OWNER/NAME, which it belongs to")
    from kaizen.takeaway.hub import check_account, push

    if given.push:
        check_account(given.push)
    # torch is loaded only for arguments that are valid
    from kaizen.takeaway.description import read_run
    from kaizen.takeaway.export import check_free, export
    from kaizen.takeaway.graph import PACKAGES, can_write

    check_free(folder)
    run = user_path("RUN", given.run)
    if not (run / "config.yaml").is_file():
        raise ConfigError("RUN", f"is '{run}', which contains no run (no config.yaml); allowed: a run directory")
    if given.onnx and not can_write():
        remedy = "pip install 'kaizen-accelerate[onnx]'"
        raise ConfigError("--onnx", f"needs the packages {' and '.join(PACKAGES)}; allowed after {remedy}")
    onnx = can_write() if given.onnx is None else given.onnx
    try:
        held = read_run(run, -1 if given.task is None else given.task)
    except ConfigError as error:
        if error.key != "--trust-code":
            raise
        problem = f"is '{run}', whose encoder is code of your own, which would not travel along"
        remedy = "an encoder of ours or of timm; `predict` and load_model take this run with --trust-code"
        raise ConfigError("RUN", f"{problem}; allowed: {remedy}") from None
    later = "; model.onnx takes a while" if onnx else ""
    print(f"exporting           task {held.description.task} of {run}{later}", flush=True)
    export(held, folder, onnx=onnx, licence=given.license)
    for file in sorted(folder.iterdir()):
        print(f"wrote {file} ({file.stat().st_size:,} bytes)")
    if given.onnx is None and not onnx:
        print(f"note: no model.onnx, which needs the packages {' and '.join(PACKAGES)}")
    if given.push:
        print(f"uploaded to {push(folder, given.push, public=given.public)}")
    return 0


def _licence(text: str) -> str:
    """An identifier as the hub has them."""
    if not re.fullmatch(r"[\w.+-]+", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"is {text!r}; allowed: an identifier such as apache-2.0 or cc-by-4.0")
    return text
