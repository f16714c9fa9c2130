"""Run by test_failure.py: a process of a run that writes its process id and, if asked, raises while it reads data.

usage: failing_process.py OUT STEP RUN_ARGUMENTS...; rank r writes its process id to OUT/pid-r, rank 1 cannot read the
images of draw number STEP (0: it can read all).
"""

import os
import sys
from pathlib import Path

from kaizen.commands.train import main
from kaizen.data.feed import Feed, HostBatch

if __name__ == "__main__":
    out, step, arguments = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    rank, gather, calls = os.environ["RANK"], Feed.gather, 0

    def failing(self: Feed, number: int) -> list[HostBatch]:
        global calls
        calls += 1
        if rank == "1" and calls == step:
            raise OSError("the images are missing")
        return gather(self, number)

    Feed.gather = failing  # type: ignore[method-assign]
    (out / f"pid-{rank}").write_text(str(os.getpid()))
    sys.exit(main(arguments))
