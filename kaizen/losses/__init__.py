"""The equations: pure functions of tensors that are already gathered, each returning a scalar.

Half types are promoted to float32, also under autocast; wider types are left alone. Where a loss compares every row
with every other one, `rows` names the rows of the global batch whose mean is wanted (all of them by default), so that a
process computes its own rows against global columns and nothing of size global x global is built.

Model and the floors above import it; it imports torch alone.
"""

from kaizen.losses.basics import promote
from kaizen.losses.classifier import (
    labelled_cross_entropy,
    mixed_cross_entropy,
    soft_label_distillation,
    stored_logits_distillation,
)
from kaizen.losses.distillation import (
    contrastive_distillation,
    decorrelative_distillation,
    feature_distillation,
    instance_distillation,
    predictive_distillation,
    predictive_mse_distillation,
    prototype_distillation,
    pseudo_negative_distillation,
)
from kaizen.losses.lejepa import sigreg, view_prediction
from kaizen.losses.ssl import (
    barlow_twins,
    byol,
    cross_task,
    deepcluster,
    dino,
    info_nce,
    nearest_neighbour,
    nt_xent,
    relational,
    simsiam,
    sinkhorn_knopp,
    sup_con,
    swapped_prediction,
    vicreg,
    w_mse,
)

__all__ = [
    "barlow_twins",
    "byol",
    "contrastive_distillation",
    "cross_task",
    "decorrelative_distillation",
    "deepcluster",
    "dino",
    "feature_distillation",
    "info_nce",
    "instance_distillation",
    "labelled_cross_entropy",
    "mixed_cross_entropy",
    "nearest_neighbour",
    "nt_xent",
    "predictive_distillation",
    "predictive_mse_distillation",
    "promote",
    "prototype_distillation",
    "pseudo_negative_distillation",
    "relational",
    "sigreg",
    "simsiam",
    "sinkhorn_knopp",
    "soft_label_distillation",
    "stored_logits_distillation",
    "sup_con",
    "swapped_prediction",
    "vicreg",
    "view_prediction",
    "w_mse",
]
