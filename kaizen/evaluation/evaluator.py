"""After a task: every reader's accuracy on every task's test images, in eval mode."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from kaizen.data.load import Stream
from kaizen.data.views import normalize
from kaizen.learner import Network
from kaizen.parallel import Parallel, shard

BATCH = 256


class Evaluator:
    """Measures a network on the test images of all tasks, over all classes, without telling it the task.

    The network is put into eval mode, so its BatchNorm statistics are read and not touched.
    """

    def __init__(self, stream: Stream, readers: Sequence[str], parallel: Parallel) -> None:
        self.stream, self.readers, self.parallel = stream, readers, parallel
        self.moments = [moment.to(parallel.device) for moment in stream.moments]

    @torch.no_grad()
    def row(self, network: Network, check: Callable[[], None]) -> dict[str, list[float]]:
        """Accuracy (fraction) on each task's test images, by reader; all processes call `check` before each batch."""
        network.to(self.parallel.device).eval()
        tasks, images, labels = self.stream.tasks, self.stream.source.test.images, self.stream.source.test.labels
        ids = np.concatenate([task.test for task in tasks])
        owners = np.repeat(np.arange(len(tasks)), [len(task.test) for task in tasks])
        mine = shard(len(ids), self.parallel.rank, self.parallel.world)
        correct = np.zeros(len(tasks), dtype=np.int64)
        mean, std = self.moments
        for offset in range(0, -(-len(ids) // self.parallel.world), BATCH):
            check()
            part = slice(mine.start + offset, min(mine.start + offset + BATCH, mine.stop))
            batch = torch.from_numpy(images[ids[part]]).to(self.parallel.device)
            guesses = network.classifier(network.encoder(normalize(batch, mean, std))).argmax(dim=1)
            np.add.at(correct, owners[part], guesses.cpu().numpy() == labels[ids[part]])
        counts = self.parallel.sum(torch.from_numpy(correct).to(self.parallel.device)).tolist()
        return {"classifier": [count / len(task.test) for count, task in zip(counts, tasks, strict=True)]}
