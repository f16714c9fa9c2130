"""A replay policy of your own: images spread evenly over the norm of their features, from the smallest to the largest.

python train.py digits --replay.policy tests/examples/own_policy.py:ByNorm --replay.per_class 5
"""

import numpy as np

from kaizen.data.policies import Candidates, ReplayPolicy


class ByNorm(ReplayPolicy):
    def order(self, candidates: Candidates) -> np.ndarray:
        by_norm = np.argsort(np.linalg.norm(candidates.features, axis=1), kind="stable")
        places = np.linspace(0, len(by_norm) - 1, candidates.keep).round().astype(int)
        return by_norm[places]
