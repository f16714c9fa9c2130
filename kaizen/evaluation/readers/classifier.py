"""The network's own head as a reader."""

from collections.abc import Set

import torch
from torch import Tensor

from kaizen.evaluation.features import BATCH
from kaizen.evaluation.readers.base import Evidence, Reader


class Classifier(Reader):
    """The head that was trained with the network."""

    sees = "run"

    def taught(self, evidence: Evidence) -> Set[int]:
        """The classes of the run's labels, if they train it."""
        settings = evidence.config.classifier
        return evidence.taught if settings.weight or settings.align == "statistics" else frozenset()

    def fit(self, evidence: Evidence) -> None:
        """Take the network's head."""
        self.head = evidence.network.classifier

    @torch.no_grad()
    def predict(self, features: Tensor) -> Tensor:
        """The class of the largest logit."""
        return torch.cat([self.head(part).argmax(dim=1) for part in features.split(BATCH)])
