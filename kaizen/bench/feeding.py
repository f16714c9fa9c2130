"""Rates of the data alone, by number of workers, and of training steps whose data are ready; the slower one limits."""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, cast

from kaizen.bench.loader import limit_sentence
from kaizen.bench.measure import WARM_UP, workplace
from kaizen.bench.session import Session, begin_run
from kaizen.bench.spread import Spread, spread
from kaizen.bench.synthetic import choose_stream
from kaizen.bench.table import row, shown
from kaizen.config.schema import Config
from kaizen.data.encoded import Encoded
from kaizen.data.feed import Feed, HostBatch
from kaizen.data.known import KNOWN_SOURCES
from kaizen.errors import ConfigError
from kaizen.parallel import Parallel, synchronize, threads
from kaizen.training.defaults import Facts, suit
from kaizen.training.plan import make_plan

HELD = 4
"""Steps whose batches are kept in memory, to train on without waiting for data."""


class Ready:
    """In place of a feed: batches of a few steps that were gathered before, again and again."""

    def __init__(self, feed: Feed) -> None:
        self.sampler = feed.sampler
        self._batches = [feed.take(step) for step in range(min(HELD, feed.steps))]

    def take(self, step: int) -> list[HostBatch]:
        """The batches of a step."""
        return self._batches[step % len(self._batches)]


def measure_data(
    recipe: str, config: Config, turns: int, synthetic: bool, parallel: Parallel, say: Callable[[str], None]
) -> dict[str, Any]:
    """Images per second of the feed alone, by workers, and of steps whose data are ready, in task 1 if there is one.

    Raises:
        ConfigError: data or stream do not fit the configuration.
    """
    stream, data = parallel.main_first(lambda: choose_stream(config, synthetic))
    known = KNOWN_SOURCES.get(config.data.source)
    if known is not None and known.stored(config.data.store) == "files" and stream.source.store == "pixels":
        problem = (
            f"measures how files are read, and {config.data.source} is not on this machine or --synthetic is given"
        )
        raise ConfigError("--data", f"{problem}; allowed: data that are here, as --data.source imagefolder:DIR")
    config = suit(config, Facts.of(stream))[0]
    plan = make_plan(config, stream.train_sizes, parallel.world, parallel.accumulation)
    say(f"data: {data}")
    with workplace(parallel) as run:
        task = begin_run(config, stream, plan, run, parallel)
        session = Session(config, stream, plan, task, run, parallel, logs=run / "logs")
        try:
            images = stream.source.train.images
            encoded = images if isinstance(images, Encoded) else None
            say(f"data alone, {turns} times each (--repetitions)")
            feeds = {}
            for workers in _numbers(encoded):
                if encoded is not None:
                    encoded.decoding = replace(encoded.decoding, workers=workers)
                feeds[workers] = spread([_fed(session, turn) for turn in range(turns)])
            say(f"steps whose data are ready, {turns} times")
            steps = _steps(session, turns)
        finally:
            session.close()
    most = max(feeds)
    return {
        "schema": 1,
        "recipe": recipe,
        "config_hash": config.hash(),
        "data": data,
        "store": config.data.store,
        "batch": plan.tasks[task].batch,
        "feeds": {str(workers): rate for workers, rate in feeds.items()},
        "steps": steps,
        "limit": limit_sentence(feeds[most]["median"], steps["median"], most if encoded is not None else None),
    }


def _numbers(encoded: Encoded | None) -> list[int]:
    """Numbers of workers to measure: powers of two, and what a run would have."""
    if encoded is None:
        return [1]
    most = encoded.decoding.workers or threads()
    return sorted({*(1 << power for power in range(most.bit_length())), most})


def _fed(session: Session, turn: int) -> float:
    """Images per second that the feed gathers, one step after another, beginning with another step in each turn."""
    feed = session.stepper.feed
    count = min(HELD, feed.steps)
    first = turn * count % (feed.steps - count + 1)
    began = time.perf_counter()
    for step in range(first, first + count):
        feed.gather(step)
    return count * feed.sampler.batch / (time.perf_counter() - began)


def _steps(session: Session, turns: int) -> Spread:
    """Images per second of steps whose batches are in memory."""
    held = session.stepper.feed
    session.stepper.feed = cast(Feed, Ready(held))
    try:
        session.seconds(WARM_UP)
        synchronize(session.parallel.device)
        batch = held.sampler.batch
        return spread([batch / session.seconds(HELD) for _ in range(turns)])
    finally:
        session.stepper.feed = held


def data_lines(found: dict[str, Any]) -> Iterator[str]:
    """The numbers of `measure_data`."""
    yield row("recipe", f"{found['recipe']}, {found['data']}")
    yield row("data.store", found["store"])
    for workers, rate in found["feeds"].items():
        crew = "one thread" if found["store"] == "pixels" else f"{workers} worker{'s' * (workers != '1')}"
        yield row(f"data, {crew}", f"{shown(rate)} images/s, with the replay images, all views of each")
    yield row("steps", f"{shown(found['steps'])} images/s, with their data ready, views on the device included")
    yield row("limit", found["limit"])
