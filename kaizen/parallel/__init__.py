"""The only place that knows ranks: who we are, what the others hold, whether they agree.

Losses follow one rule: each process returns its *share*, a scalar whose mean over processes is the loss of the global
batch. DDP and FSDP average gradients over processes, so the mean of the shares' gradients is the gradient of the global
loss, whatever the number of processes and however uneven their slices.
"""

from kaizen.parallel.batch import Batch
from kaizen.parallel.collectives import ALONE, Group, shard
from kaizen.parallel.device import synchronize
from kaizen.parallel.graphs import Branches, CudaGraph, CudaLanes
from kaizen.parallel.launch import usable_cores
from kaizen.parallel.layout import memory_format
from kaizen.parallel.norm import GlobalBatchNorm
from kaizen.parallel.processes import Parallel
from kaizen.parallel.sharding import check_alike, check_encoder, local, norms, part_of, whole

__all__ = [
    "ALONE",
    "Batch",
    "Branches",
    "CudaGraph",
    "CudaLanes",
    "GlobalBatchNorm",
    "Group",
    "Parallel",
    "check_alike",
    "check_encoder",
    "local",
    "memory_format",
    "norms",
    "part_of",
    "shard",
    "synchronize",
    "usable_cores",
    "whole",
]
