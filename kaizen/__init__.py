"""Kaizen on Accelerate: self-supervised continual learning with continual fine-tuning, on any number of processes."""

import time

__version__ = "0.1.0"
STARTED = time.time()
"""When this program began, as near as a package can tell."""
