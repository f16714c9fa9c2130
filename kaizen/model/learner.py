"""The one trainable module: encoder, projector, classifier, distillation predictor and the method's own heads.

One forward gives the four terms of the loss (Tang et al. 2024, arXiv 2303.17235, eq. 1-5). Everything trainable goes
through this forward, where the hooks of DDP and FSDP fire.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kaizen.config.schema import Config
from kaizen.data.random import Purpose, fold
from kaizen.errors import ConfigError
from kaizen.losses import (
    labelled_cross_entropy,
    mixed_cross_entropy,
    promote,
    soft_label_distillation,
    stored_logits_distillation,
)
from kaizen.model.distillers import Distiller, Sides
from kaizen.model.methods import method_class
from kaizen.model.methods.base import Outputs, TeacherOutputs
from kaizen.model.networks.encoders import build_encoder
from kaizen.model.networks.heads import encode_all, forward_all, mlp
from kaizen.parallel import Batch

TERMS = ("ssl", "distill", "classifier", "classifier_distill")


@dataclass(frozen=True)
class Remembered:
    """What the memory adds to the local images of a step beside replay images.

    labels: int64 (n,), of the images that are mixed into the n images (-1 = not available), or None where none are;
    shares: (n,), the parts of the images themselves; logits: float32 (m, classes), stored for the m replay images, the
    last ones of the batch, or None.
    """

    labels: Tensor | None = None
    shares: Tensor | None = None
    logits: Tensor | None = None


@contextmanager
def seeded(seed: int, component: int) -> Iterator[None]:
    """Initialise one component from (seed, component) alone and leave torch's generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(fold(seed, Purpose.INIT, component))
        yield


class Network(nn.Module):
    """Encoder, projector and classifier: what a task's snapshot holds and a teacher consists of."""

    def __init__(self, config: Config, num_classes: int) -> None:
        super().__init__()
        seed = config.run.seed
        method = method_class(config.method.name)
        with seeded(seed, 0):
            self.encoder = build_encoder(config.encoder, config.data.image_size)
        with seeded(seed, 1):
            self.projector = method.build_projector(config.method, self.encoder.feature_dim)
        with seeded(seed, 2):
            self.classifier = mlp((self.encoder.feature_dim, *config.classifier.hidden, num_classes))


class Learner(Network):
    """The student in training.

    Args:
        config: the run's configuration.
        num_classes: outputs of the classifier, one head over all classes of the stream.
        distiller: the distiller of the features, or None; its predictor is made where there is a teacher to follow.
    """

    def __init__(self, config: Config, num_classes: int, distiller: Distiller | None) -> None:
        super().__init__(config, num_classes)
        with seeded(config.run.seed, 3):
            self.method = method_class(config.method.name)(config.method)
            self.method.build_heads(self.encoder.feature_dim, num_classes)
            if distiller is not None and distiller.gives_negatives:
                self.method.meet_old_outputs()
        self.distiller = distiller
        self.stop_gradient = config.classifier.stop_gradient
        if distiller is not None:
            with seeded(config.run.seed, 4):
                shape = self.method.prototypes().shape[:2] if self.method.has_prototypes else (0, 0)
                reads_features = distiller.reads == "features"
                dim = self.encoder.feature_dim if reads_features else config.method.projector_out
                self.distill_predictor = distiller.build_predictor(dim, *shape)

    def forward(
        self,
        views: list[Tensor],
        labels: Tensor,
        batch: Batch,
        twin: list[Tensor] | None = None,
        old: TeacherOutputs | None = None,
        join: Callable[[], None] | None = None,
        remembered: Remembered | None = None,
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The four terms of the loss, unweighted, and the projections.

        Args:
            views: augmented images (n, 3, h, w) of this process, one tensor per view; those beyond the first two are
                small crops, which only the SSL loss sees.
            labels: int64 (n,), -1 = not available.
            batch: where these images stand in the global batch.
            twin: outputs of the momentum twin, for methods that have one.
            old: outputs of the teacher for the first two views, from task 1 on.
            join: called before `twin` and `old` are read, which may be computed in parallel with the student until
                then.
            remembered: what the memory adds, where images are mixed or logits are stored.

        Returns:
            Scalars by name (see TERMS; each process' share, the mean over processes is the global value), and
            detached projections (n, d), one tensor per view.
        """
        features = encode_all(self.encoder, views, batch.keys)
        projections = [promote(z) for z in forward_all(self.projector, features)]
        read = [f.detach() for f in features[:2]] if self.stop_gradient else features[:2]
        logits = forward_all(self.classifier, read)
        predictions, inputs = None, list[Tensor]()
        if self.distiller is not None and old is not None:
            inputs = self._distilled(self.distiller, features[:2], projections[:2])
            predictions = [promote(p) for p in forward_all(self.distill_predictor, inputs)]
        if join is not None:
            join()
        # Losses are computed in float32 or wider, whatever the networks' precision.
        with torch.autocast(views[0].device.type, enabled=False):
            terms = self._classifier_terms(logits, labels, batch, old, remembered or Remembered())
            own = own_labels(labels, remembered)
            ssl = self.method.loss(Outputs(projections, twin or [], own, old, features), batch)
            terms["ssl"] = _scalar("method.name", self.method, ssl)
            if predictions is not None and old is not None and self.distiller is not None:
                targets = self._distilled(self.distiller, old.features, old.projections)
                sides = Sides(predictions, inputs, targets, self.distill_predictor, self.method, old.prototypes)
                terms["distill"] = _scalar("distill.name", self.distiller, self.distiller.loss(sides, batch))
        return {name: terms[name] for name in TERMS}, [z.detach() for z in projections]

    def _distilled(self, distiller: Distiller, features: list[Tensor], projections: list[Tensor]) -> list[Tensor]:
        """What the distiller reads of a network's outputs, one tensor per view."""
        if distiller.reads == "features":
            return features
        return [self.method.distill_input(z) for z in projections]

    def _classifier_terms(
        self,
        logits: list[Tensor],
        labels: Tensor,
        batch: Batch,
        old: TeacherOutputs | None,
        remembered: Remembered,
    ) -> dict[str, Tensor]:
        terms = dict.fromkeys(TERMS, promote(logits[0]).new_zeros(()))
        if remembered.labels is None or remembered.shares is None:
            sums = [labelled_cross_entropy(g, labels) for g in logits]
        else:
            sums = [mixed_cross_entropy(g, labels, remembered.labels, remembered.shares) for g in logits]
        terms["classifier"] = torch.stack([batch.share_labelled(one) for one in sums]).sum()
        if old is not None and old.logits:
            soft = soft_label_distillation(logits[0], logits[1], old.logits[0], old.logits[1])
            terms["classifier_distill"] = batch.share(soft)
        if (stored := remembered.logits) is not None:
            sums = [stored_logits_distillation(g[len(g) - len(stored) :], stored) for g in logits]
            terms["classifier_distill"] = batch.share_replay(torch.stack(sums).mean())
        return terms


def _scalar(key: str, part: object, loss: Tensor) -> Tensor:
    """The loss of a method or distiller, which may be the user's own."""
    if not isinstance(loss, Tensor) or loss.ndim:
        found = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"type {type(loss).__name__}"
        problem = f"is {type(part).__name__}, whose loss has the {found}"
        raise ConfigError(key, f"{problem}; allowed: a tensor with a single number, as batch.share(losses.mean())")
    return loss


def last_layer(config: Config) -> str:
    """Name of the classifier's last layer, which has an output per class; an activation follows every other one."""
    return f"classifier.{2 * len(config.classifier.hidden)}"


def own_labels(labels: Tensor, remembered: Remembered | None) -> Tensor:
    """The labels that an SSL loss sees: a mixed image has none of its own, as it shows images of two labels."""
    return labels if remembered is None or remembered.labels is None else torch.full_like(labels, -1)


def total(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """The weighted sum of the four terms."""
    return torch.stack([weights[name] * terms[name] for name in TERMS]).sum()
