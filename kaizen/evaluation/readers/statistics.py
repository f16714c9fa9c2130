"""The classifier that the run made from its statistics of past classes."""

from torch import Tensor

from kaizen.evaluation.readers.base import Evidence, Reader
from kaizen.model.statistics import FILE, read_checked


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
            ConfigError: the file is damaged, or of another encoder.
        """
        assert evidence.directory is not None
        held = read_checked(evidence.directory / f"{FILE}.safetensors", evidence.network.encoder.feature_dim)
        self.weight, self.bias, self.classes = held["weight"], held["bias"], held["classes"]

    def predict(self, features: Tensor) -> Tensor:
        """The class of the largest score."""
        scores = features @ self.weight.to(features.device).T + self.bias.to(features.device)
        return self.classes.to(features.device)[scores.argmax(dim=1)]
