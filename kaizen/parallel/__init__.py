"""The only package that knows ranks: collectives, agreement between processes, DDP and FSDP2.

Losses follow one rule: each process returns its *share*, a scalar whose mean over processes is the loss of the global
batch. DDP and FSDP average gradients over processes, so the mean of the shares' gradients is the gradient of the global
loss, whatever the number of processes and however uneven their slices.

Run, data, model and the floors above import it; it imports kaizen.errors alone.
"""

from kaizen.parallel.accumulation import accumulation
from kaizen.parallel.batch import Batch
from kaizen.parallel.collectives import ONE_PROCESS, Group, shard
from kaizen.parallel.device import products_of_losses, synchronize
from kaizen.parallel.foreach import add_scaled_
from kaizen.parallel.graphs import Branches, CudaGraph, CudaLanes
from kaizen.parallel.launch import neighbours, threads, usable_cores
from kaizen.parallel.layout import memory_format
from kaizen.parallel.norm import GlobalBatchNorm
from kaizen.parallel.processes import Parallel
from kaizen.parallel.sharding import check_alike, check_encoder, full_tensors, local, norms, shard_like
