"""Kaizen on Accelerate: self-supervised continual learning with continual fine-tuning, on any number of processes."""

import sys
import time

# Older versions read this far, as nothing in this file is new to them, and would fail at a line that says nothing.
if sys.version_info < (3, 11):  # noqa: UP036
    found = ".".join(map(str, sys.version_info[:2]))
    sys.stderr.write("error: Python: is " + found + "; allowed: 3.11 or later, as in python3.11 -m venv .venv\n")
    sys.exit(2)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from kaizen.api import Config as Config
    from kaizen.api import Trainer as Trainer
    from kaizen.takeaway.load import load_model as load_model

__version__ = "0.1.0"
STARTED = time.time()
"""When this program began, as near as a package can tell."""

LATER = {"Config": "kaizen.api", "Trainer": "kaizen.api", "load_model": "kaizen.takeaway.load"}
"""Names that are imported when they are used: `import kaizen` does not load torch."""


def __getattr__(name: str) -> object:
    if name in LATER:
        from importlib import import_module

        return getattr(import_module(LATER[name]), name)
    raise AttributeError("module 'kaizen' has no attribute " + repr(name))
