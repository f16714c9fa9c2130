"""The classifier that the run made from its statistics of past classes."""

from torch import Tensor

from kaizen.errors import ConfigError
from kaizen.evaluation.readers.base import Evidence, Reader
from kaizen.model.statistics import FILE
from kaizen.run.tensors import read_tensors


class FromStatistics(Reader):
    """LDA as a linear layer on the features, from the statistics that were carried to the end of the task."""

    sees = "run"

    def can_read(self, evidence: Evidence) -> bool:
        """Whether the run keeps statistics and has seen a class."""
        kept = evidence.directory is not None and (evidence.directory / f"{FILE}.safetensors").exists()
        return kept and bool(evidence.taught)

    def fit(self, evidence: Evidence) -> None:
        """Read the layer.

        Raises:
            ConfigError: the file holds none.
        """
        assert evidence.directory is not None
        file = evidence.directory / f"{FILE}.safetensors"
        held = read_tensors(file)
        if lacking := {"weight", "bias", "classes"} - held.keys():
            raise ConfigError(str(file), f"is no file of statistics: it lacks {', '.join(sorted(lacking))}")
        self.weight, self.bias, self.classes = held["weight"], held["bias"], held["classes"]

    def predict(self, features: Tensor) -> Tensor:
        """The class of the largest score."""
        scores = features @ self.weight.to(features.device).T + self.bias.to(features.device)
        return self.classes.to(features.device)[scores.argmax(dim=1)]
