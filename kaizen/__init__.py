"""Kaizen on Accelerate: self-supervised continual learning with continual fine-tuning, on any number of processes."""

__version__ = "0.1.0"
