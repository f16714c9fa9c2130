"""train.py on two CPU processes through Accelerate's FSDP2, which Accelerate allows only on accelerators.

usage: accelerate launch --config_file accelerate_configs/fsdp2.yaml tests/parallel/fsdp.py TRAIN_ARGUMENTS...; each
process prints how many bytes of parameters, optimizer state and twin it has.
"""

import os
import sys
from typing import Any

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"

from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch import Tensor

from kaizen.commands.train import main
from kaizen.parallel import local
from kaizen.training.step import Stepper


def _backend(*_: Any, **__: Any) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_GPU


def _bytes(tensors: list[Tensor]) -> int:
    return sum(local(t).numel() * t.element_size() for t in tensors)


class Measured(Stepper):
    def step(self, step: int) -> dict[str, Tensor]:
        terms = super().step(step)
        if step == 1:
            optimizer = getattr(self.state.optimizer, "optimizer", self.state.optimizer)
            held = [
                t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor) and t.dim()
            ]
            twin = list(self.state.twin.parameters()) if self.state.twin is not None else []
            sizes = [_bytes(list(self.state.learner.parameters())), _bytes(held), _bytes(twin)]
            # In one write, as both processes print to the same stream.
            line = " ".join(map(str, ("held", self.parallel.rank, self.state.task, *sizes)))
            os.write(1, f"\n{line};\n".encode())
        return terms


if __name__ == "__main__":
    import kaizen.training.trainer

    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        PartialState._prepare_backend = _backend
    kaizen.training.trainer.Stepper = Measured  # type: ignore[misc]
    sys.exit(main(sys.argv[1:]))
