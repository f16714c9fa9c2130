"""The readers: REGISTRY names a class for each, in the order of results.json. To add one, see ../README.md."""

from kaizen.evaluation.readers.base import Check, Evidence, Reader
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
        ConfigError: an own one cannot be loaded.
    """
    return REGISTRY[name] if name in REGISTRY else own_class("eval.readers", name)


__all__ = ["REGISTRY", "Check", "Evidence", "Reader", "reader_class"]
