"""Nearest class mean: class scores from the distance or the angle between a RoI's embedding and each class's mean."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from calib.posthoc.fitting import ROWS_AT_ONCE, embeddings, fit_temperature, labelled_rows
from extract.data.class_map import MIN_LOGIT

if TYPE_CHECKING:
    import torch

    from calib.classifiers import ClassifierKind
    from calib.heads import Head
    from extract import RoICache


class NCM:
    """softmax(−‖x − μ_c‖² / T) of the embedding x, where μ_c is the mean embedding of the class's RoIs.

    Background is a class as the others. ‖x‖² is the same for all classes, so that logits are (2 μ_c·x − ‖μ_c‖²) / T:
    `fit` returns a linear head. T is fitted to the same RoIs unless it is given.

    Source: Mensink et al., "Distance-Based Image Classification" (TPAMI 2013); Kang et al., "Decoupling
    Representation and Classifier" (ICLR 2020), section 4.2 and its released code (`KNNClassifier`, un-normalised).
    """

    needs: ClassVar[str] = "features and labels of a train cache"
    source: ClassVar[str] = "Mensink et al., TPAMI 2013; Kang et al., ICLR 2020, section 4.2"
    fits_labels = True
    kind: ClassVar[str] = "ncm"
    classifier: ClassVar[ClassifierKind] = "linear"

    def __init__(self, temperature: float | None = None) -> None:
        """Raises ValueError for a temperature that is not positive; None fits it."""
        if temperature is not None and not temperature > 0:
            raise ValueError(f"temperature is {temperature}, expected more than 0")
        self.temperature = temperature
        self.name = self.kind if temperature is None else f"{self.kind}-{temperature:g}"

    def fit(self, cache: RoICache) -> Head:
        """Returns a head with the class means of a train cache. The scores of classes without RoIs are 0.

        Raises:
            ValueError: a cache without features, labels or, for pooled features, the detector's layers.
        """
        from calib.head_types import build_head
        from calib.heads import Head

        linear = build_head(cache, "linear", 1, 0, {"method": self.name, "cache": cache.fingerprint})
        head = Head(replace(linear.info, kind=self.kind, classifier=self.classifier))
        head.load_state_dict(linear.state_dict())
        for stage in range(len(cache.stages)):
            self._fit_stage(cache, head, stage)
        return head.eval()

    def rows(self, means: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the classifier's weight (K+1, C) and bias (K+1,) of class means (K+1, C), at T = 1."""
        return 2 * means, -means.square().sum(1)

    def _fit_stage(self, cache: RoICache, head: Head, stage: int) -> None:
        """Sets weight and bias of a stage's classifier."""
        import torch

        from calib.heads import linear_layers

        classifier = linear_layers(head.stages[stage])[-1]
        labels = cache.read("labels")[:, stage].astype(np.int64)
        rows = labelled_rows(cache, stage)
        means, counts = _class_means(cache, head, stage, labels)
        weight, bias = (values.float() for values in self.rows(means))
        temperature = self.temperature
        if temperature is None:
            classifier.load_state_dict({"weight": weight, "bias": bias})
            logits = torch.cat([classifier(x) for x in embeddings(cache, head, stage, rows)])
            temperature = fit_temperature(logits.numpy(), labels[rows])
        bias = torch.where(counts > 0, bias / temperature, MIN_LOGIT)
        classifier.load_state_dict({"weight": weight / temperature, "bias": bias})


class CosineNCM(NCM):
    """softmax(cos(x, μ_c) / T) of the embedding x, where μ_c is the mean embedding of the class's RoIs.

    Background is a class as the others. T is fitted to the same RoIs unless it is given.

    Source: Kang et al., "Decoupling Representation and Classifier" (ICLR 2020), section 4.2: cosine similarity.
    """

    source = "Kang et al., ICLR 2020, section 4.2"
    kind = "cosine-ncm"
    classifier = "cosine"

    def rows(self, means: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the means with norm 1, and no bias."""
        return means / means.norm(dim=1, keepdim=True).clamp(min=1e-12), means.new_zeros(len(means))


def _class_means(cache: RoICache, head: Head, stage: int, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns class means (K+1, C) float64, 0 for classes without RoIs, and the number of RoIs (K+1,)."""
    import torch

    rows = np.flatnonzero(labels >= 0)
    targets = torch.from_numpy(labels[rows])
    sums = torch.zeros(cache.num_classes + 1, head.info.widths[-2], dtype=torch.float64)
    for own, x in zip(targets.split(ROWS_AT_ONCE), embeddings(cache, head, stage, rows), strict=True):
        sums.index_add_(0, own, x.double())
    counts = torch.bincount(targets, minlength=len(sums))
    return sums / counts.clamp(min=1)[:, None], counts
