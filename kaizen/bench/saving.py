"""Cost of checkpoints: compares steps during which one is written with as many steps without."""

import shutil
import time
from pathlib import Path
from typing import Any

from kaizen.bench.session import Session
from kaizen.bench.spread import interleaved, ratio, spread
from kaizen.parallel import synchronize
from kaizen.run.places import checkpoint_directory
from kaizen.run.writer import Writer

STEPS = 50
"""Steps between two checkpoints."""
FEWEST, PART = 5, 4
"""Minimum number of turns, and one turn per PART repetitions of the other measurements, as turns are long."""


def compare_checkpoints(session: Session, folder: Path, turns: int) -> dict[str, Any]:
    """Ratio of seconds, 50 steps with a checkpoint to 50 steps without, in turns, and the checkpoint's bytes.

    The time includes the wait until all its bytes are written, as the next checkpoint of a run waits for them.
    """
    writer, sizes = Writer(), [0]

    def saving(steps: int) -> float:
        synchronize(session.parallel.device)
        began = time.perf_counter()
        path = checkpoint_directory(folder, session.task, session.done)
        write = session.state.checkpoint(path, {"task": session.task, "step": session.done})
        session.parallel.on_main(lambda: writer.submit(write))
        for _ in range(steps):
            session.step()
        session.parallel.on_main(writer.wait)
        synchronize(session.parallel.device)
        taken = time.perf_counter() - began
        sizes.append(sum(file.stat().st_size for file in path.glob("*")))
        session.parallel.on_main(lambda: shutil.rmtree(path))
        return taken / steps

    with_one, without = interleaved([saving, session.seconds], max(FEWEST, turns // PART), STEPS)
    writer.close()
    return {"every_steps": STEPS, "bytes": max(sizes), "seconds": spread(with_one), "ratio": ratio(with_one, without)}
