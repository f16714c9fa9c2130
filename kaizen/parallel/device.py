"""Waiting for the device, and the choice of its kernels."""

import os

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
