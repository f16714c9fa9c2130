"""All measurements of one step, as one dictionary of plain numbers."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kaizen.bench.against import compare_views
from kaizen.bench.memory import peak_memory, reset_peak
from kaizen.bench.originals import compare_originals
from kaizen.bench.parts import MatrixProduct, flops_by_part, seconds_by_part, traffic
from kaizen.bench.plain import PlainLoop, lacking
from kaizen.bench.profile import PROFILED, profile
from kaizen.bench.saving import compare_checkpoints
from kaizen.bench.session import Session, begin_run
from kaizen.bench.spread import WARM_UP, Spread, interleaved, inverse, ratio, spread
from kaizen.bench.synthetic import choose_stream
from kaizen.config.schema import Config
from kaizen.parallel import Parallel
from kaizen.run.environment import environment
from kaizen.training.defaults import Facts, suit
from kaizen.training.plan import make_plan
from kaizen.training.recording import check_recording, why_ordinary

BLOCK_SECONDS = 0.5
"""Seconds per repetition, long enough that neither the clock nor a single log line matters."""
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Options:
    """Options: repetitions, profile, images, pipelines of views to compare with, checkpoints."""

    repetitions: int = 20
    profile: bool = False
    synthetic: bool = False
    against: tuple[str, ...] = ()
    checkpoints: bool = False


Say = Callable[[str], None]


@contextmanager
def workplace(parallel: Parallel) -> Iterator[Path]:
    """A temporary directory shared by all processes, deleted afterwards; on several nodes TMPDIR must be shared."""
    path = Path(parallel.on_main(lambda: tempfile.mkdtemp(prefix="kaizen-bench-")))
    try:
        yield path
    finally:
        if parallel.is_main:
            shutil.rmtree(path, ignore_errors=True)


def measure(recipe: str, config: Config, options: Options, parallel: Parallel, say: Say) -> dict[str, Any]:
    """Measure the training step of a recipe, in task 1 if there is one.

    Raises:
        ConfigError: data or stream do not fit the configuration.
    """
    stream, data = parallel.main_first(lambda: choose_stream(config, options.synthetic))
    config = suit(config, Facts.of(stream))[0]
    plan = make_plan(config, stream.train_sizes, parallel.world, parallel.accumulation)
    if problem := check_recording(config, parallel):
        say(problem)
    say(f"data: {data}")
    with workplace(parallel) as run:
        task = begin_run(config, stream, plan, run, parallel)
        session = Session(config, stream, plan, task, run, parallel, logs=run / "logs")
        try:
            found = _measured(session, options, say)
            if options.profile:
                say(f"profile of {PROFILED} steps")
                found["profile"] = profile(session, PROFILED)
            if options.checkpoints:
                say("steps with a checkpoint every 50 and without")
                found["checkpoints"] = compare_checkpoints(session, run, options.repetitions)
        finally:
            session.close()
    for name in options.against:
        say(f"views against {name}, {options.repetitions} turns")
        work: Callable[[], dict[str, Spread]] = partial(compare_views, name, config, stream, options.repetitions)
        if name == "pil" and config.data.store == "files":
            work = partial(compare_originals, config, stream, options.repetitions)
        found["views"][name] = parallel.on_main(work)
    return _described(recipe, config, data, session, parallel) | found


def _described(recipe: str, config: Config, data: str, session: Session, parallel: Parallel) -> dict[str, Any]:
    """What was measured: recipe, device, batch and so on."""
    sampler, about = session.stepper.feed.sampler, environment(parallel)
    del about["command"]
    return {
        "schema": 1,
        "recipe": recipe,
        "config_hash": config.hash(),
        "data": data,
        "environment": about,
        "task": session.task,
        "teacher": session.state.teacher is not None,
        "batch": {"current": sampler.batch, "replay": sampler.replay, "image_size": session.stepper.image[-1]},
    }


def _measured(session: Session, options: Options, say: Say) -> dict[str, Any]:
    """The numbers in order of measurement; those that exclude the plain loop's networks from memory come first."""
    parallel, turns = session.parallel, options.repetitions
    first = session.seconds(1)
    session.seconds(2 * WARM_UP)
    block = parallel.broadcast(max(1, int(BLOCK_SECONDS / session.seconds(WARM_UP))))
    say(f"parts of a step, {turns} times")
    parts, peaks = _profile(session, turns)
    say("arithmetic and traffic of a step")
    flops, sent = flops_by_part(session), traffic(session)
    product = MatrixProduct(parallel.device, DTYPES[parallel.accelerator.mixed_precision])
    missing = lacking(session)
    beside = "" if missing else " of ours and of the plain loop, in turns"
    say(f"whole steps, {turns} times {block}{beside}")
    recorder = session.stepper.recorder
    loops = {"ours": session.seconds, "product": product.seconds}
    if not missing:
        loops["plain"] = PlainLoop(session).seconds
    if recorder is not None and recorder.recorded:
        loops["ordinary"] = session.ordinary_seconds
    taken = dict(zip(loops, interleaved(list(loops.values()), turns, block), strict=True))
    ours, products = taken["ours"], taken["product"]
    seconds = spread(ours)
    model = sum(count for part, count in flops.items() if part != "views")
    plain = taken.get("plain")
    return {
        "step": {
            "first_seconds": first,
            "seconds": seconds,
            "images_per_second": inverse(seconds, session.stepper.feed.sampler.batch),
            "steps_a_repetition": block,
        },
        "parts": parts,
        "flops": {
            "step": model,
            "parts": flops,
            "per_second": inverse(seconds, model),
            "peak_per_second": inverse(spread(products), product.flops),
            # In pairs, so that another program on the machine slows both down.
            "share_of_peak": spread([model / a / (product.flops / b) for a, b in zip(ours, products, strict=True)]),
        },
        "memory": {"peak_bytes": peaks},
        "communication": sent,
        "plain": {"seconds": spread(plain), "ratio": ratio(ours, plain)} if plain else {"missing": missing},
        "graph": _recorded(session, taken.get("ordinary"), ours),
        "views": {},
    }


def _recorded(session: Session, ordinary: list[float] | None, ours: list[float]) -> dict[str, Any]:
    """Whether steps were recorded: if so, compared with ordinary steps; if not, the reason."""
    if ordinary is not None:
        return {"recorded": True, "seconds": spread(ordinary), "ratio": ratio(ordinary, ours)}
    recorder = session.stepper.recorder
    why = why_ordinary(session.config, session.parallel) if recorder is None else recorder.refused
    return {"recorded": False, "why": why or "there are too few steps"}


def _profile(session: Session, turns: int) -> tuple[dict[str, Spread], Spread]:
    """Seconds of each part, and bytes at the peak, of single steps."""
    taken, peaks = [], []
    for _ in range(turns):
        reset_peak(session.parallel)
        taken.append(seconds_by_part(session))
        peaks.append(peak_memory(session.parallel))
    return {name: spread([one[name] for one in taken]) for name in taken[0]}, spread(peaks)
