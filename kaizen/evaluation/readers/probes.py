"""Linear probes: one converged logistic regression, on what the reader sees."""

from torch import Tensor

from kaizen.evaluation.readers.base import Evidence, Reader
from kaizen.evaluation.readers.logistic import TOLERANCE, LinearProbe, fit_probe


class Probe(Reader):
    """Logistic regression on standardised, frozen features."""

    def fit(self, evidence: Evidence) -> None:
        """Fit to the images that it sees; readers that see the same images share the result."""
        features, labels = evidence.images(self.sees)
        key = "probe", "memory" if self.sees == "memory" else len(labels)
        if key not in evidence.shared:
            probe = fit_probe(features, labels, evidence.config.run.seed, evidence.check)
            evidence.shared[key] = probe
            if probe.gradient > TOLERANCE:
                problem = f"the solver ended before it converged, at a gradient of {probe.gradient:.1e}"
                print(f"note: {self.name} after task {evidence.task}: {problem}")
        self.probe: LinearProbe = evidence.shared[key]

    def predict(self, features: Tensor) -> Tensor:
        """The class of the largest score."""
        return self.probe.predict(features)


class ProbeSeen(Probe):
    """On the training images of the tasks seen."""

    sees = "seen"


class ProbeAll(Probe):
    """On the training images of all tasks."""

    sees = "all"


class ProbeMemory(Probe):
    """On the images in the replay memory."""

    sees = "memory"
