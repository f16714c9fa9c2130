"""The readers: REGISTRY names a class for each, in the order of results.json. To add one, see ../README.md."""

from kaizen.evaluation.readers.base import Check, Evidence, Reader
from kaizen.evaluation.readers.classifier import Classifier
from kaizen.evaluation.readers.neighbours import NearestMean, Neighbours
from kaizen.evaluation.readers.probes import ProbeAll, ProbeMemory, ProbeSeen
from kaizen.evaluation.readers.statistics import FromStatistics

REGISTRY: dict[str, type[Reader]] = {
    "classifier": Classifier,
    "statistics": FromStatistics,
    "linear_probe_seen": ProbeSeen,
    "linear_probe_all": ProbeAll,
    "knn": Neighbours,
    "memory_probe": ProbeMemory,
    "ncm": NearestMean,
}

__all__ = ["REGISTRY", "Check", "Evidence", "Reader"]
