"""The readers: REGISTRY names a class for each, in the order of results.json. To add one, see ../README.md."""

from typing import get_args

from kaizen.errors import ConfigError
from kaizen.evaluation.readers.base import Check, Evidence, Reader, Sees
from kaizen.evaluation.readers.classifier import Classifier
from kaizen.evaluation.readers.neighbours import NearestMean, Neighbours
from kaizen.evaluation.readers.probes import ProbeAll, ProbeMemory, ProbeSeen
from kaizen.evaluation.readers.statistics import FromStatistics
from kaizen.plugins import own_class

REGISTRY: dict[str, type[Reader]] = {
    "classifier": Classifier,
    "statistics": FromStatistics,
    "linear_probe_seen": ProbeSeen,
    "linear_probe_all": ProbeAll,
    "knn": Neighbours,
    "memory_probe": ProbeMemory,
    "ncm": NearestMean,
}


def reader_class(name: str) -> type[Reader]:
    """The class of the reader of that name, ours or the user's own.

    Raises:
        ConfigError: an own one cannot be loaded, or does not say what it sees.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    found: type[Reader] = own_class("eval.readers", name)
    if found.sees not in get_args(Sees):
        problem = f"is {name!r}, whose sees is {found.sees!r}; allowed: {', '.join(get_args(Sees))}"
        raise ConfigError("eval.readers", problem)
    return found


__all__ = ["REGISTRY", "Check", "Evidence", "Reader", "reader_class"]
