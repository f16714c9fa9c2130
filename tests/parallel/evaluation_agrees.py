"""Part of two_processes.py: what readers measure on two processes and on one."""

import copy
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from kaizen.cli.resolve import parse_arguments, resolve
from kaizen.config.schema import READERS
from kaizen.data.load import load_stream
from kaizen.data.replay import Memory
from kaizen.evaluation.evaluator import Evaluator
from kaizen.evaluation.readers import REGISTRY
from kaizen.model.learner import Network
from kaizen.model.statistics import Statistics
from kaizen.parallel import ONE_PROCESS, Parallel


def evaluation_agrees(parallel: Parallel, arguments: list[str], out: Path) -> bool:
    """Two processes give the accuracies of one, for every reader, to the last bit; `out` gets a memory to read."""
    config = resolve(*parse_arguments(arguments))[1]
    stream, network = load_stream(config), Network(config, 10)
    alone = copy.copy(parallel)
    alone.rank, alone.world, alone.is_main, alone.group = 0, 1, True, ONE_PROCESS
    alone._cpu_group = alone._step_group = None
    readers, ids = READERS.words, np.concatenate([task.train[:20] for task in stream.tasks[:2]])
    source, rows = stream.source.train, torch.from_numpy(ids)
    memory = Memory(torch.from_numpy(source.images[ids]), torch.from_numpy(source.labels[ids]), rows, rows * 0)

    def write() -> None:
        (out / "tasks/task-01").mkdir(parents=True)
        save_file(memory.tensors(), out / "tasks/task-01/replay.safetensors")
        size = network.encoder.feature_dim
        held = Statistics.measured(torch.randn(200, size), torch.arange(200) % 10)
        weight, bias = held.classifier(0.1)
        layer = {"weight": weight.float(), "bias": bias.float()}
        save_file(held.tensors() | layer, out / "tasks/task-01/statistics.safetensors")

    parallel.on_main(write)
    found = [
        [Evaluator(config, stream, p).row(network, task, readers, run=out) for p in (parallel, alone)]
        for task in (-1, 1)
    ]
    may_be_empty = [reader for reader in readers if REGISTRY[reader].sees == "memory" or reader == "statistics"]
    return all(two == one for two, one in found) and all(
        any(cell is not None for cell in two.accuracies[reader]) != (task < 0 and reader in may_be_empty)
        for task, (two, _) in zip((-1, 1), found, strict=True)
        for reader in readers
    )
