"""Waiting for the device, and the choice of its kernels."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def synchronize(device: torch.device) -> None:
    """Wait for what the device is doing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def choose_kernels(device: torch.device, deterministic: bool) -> None:
    """On a GPU, kernels that give the same bits in every run, or the fastest ones for the sizes in use.

    Which is the fastest is measured in each run anew, so two runs may round differently. A CPU's are deterministic.
    """
    if device.type != "cuda":
        return
    if device.index is not None:
        # Accelerate does not do this where ACCELERATE_TORCH_DEVICE is set.
        torch.cuda.set_device(device)
    if deterministic:
        # Read when cuBLAS is first used: a workspace of fixed size for each stream.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # Nothing here reads memory before it is written.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()


@contextmanager
def products_of_losses(device: torch.device, precision: str) -> Iterator[None]:
    """Inside, a GPU rounds factors of float32 products to TF32 (10 bits) if networks are in half precision.

    Such a network's outputs have 8 to 11 bits. Only with KAIZEN_TRIAL=1, until `.ci/gpu` has shown that it is faster.

    Args:
        precision: Accelerate's mixed precision; "no" leaves float32 products whole.
    """
    held = torch.backends.cuda.matmul.allow_tf32
    if device.type == "cuda" and precision != "no" and os.environ.get("KAIZEN_TRIAL") == "1":
        torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = held
