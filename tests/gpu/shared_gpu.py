"""train.py for two processes that share one GPU, which NCCL does not allow: over gloo."""

import sys

from accelerate import PartialState
from accelerate.utils import DistributedType

from kaizen.commands.train import main

if __name__ == "__main__":
    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    sys.exit(main(sys.argv[1:]))
