"""Option sets that the commands, the notebook functions, the live detector and exports share.

The command line reads this module first, so it imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Suppress

from calib.posthoc.norcal import Factor as NorCalFactor
from calib.posthoc.norcal import Variant as NorCalVariant
from extract.class_scores import Average
from extract.data.bins import edges
from extract.data.classes import CountColumn
from fuse.defaults import BOOTSTRAP_SAMPLES, CAT_THRESHOLD, ENGINE, MAX_DETECTIONS, SCORE_THRESHOLD, TAIL
from fuse.scores import UNCALIBRATED_MODES, FusionMode

MergeMethod = Literal["nms", "wbf"]
"""How results are merged: per-class NMS or weighted box fusion."""


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """How the scores of the original and of the calibrated classifier become detections.

    `fuse.detect`, `fuse.CalibratedDetector`, exports and the commands take these options.
    """

    mode: FusionMode = "cat"
    """How the two classifiers are combined: a mode of `fuse.fuse_scores`; det, where each detects by itself and the
    detections are joined; or props-gt, the oracle of the paper's Table 4."""

    tail: float = TAIL
    """Tail classes are those with fewer training instances than this. The calibrated classifier scores them."""

    tail_mask: Suppress[Sequence[bool] | None] = None
    """(K,) bool, the tail classes themselves, in place of the bound `tail`."""

    score_threshold: float = SCORE_THRESHOLD
    """Detections score above it."""

    iou_threshold: float | None = None
    """NMS removes boxes of a class that overlap more; the detector's own threshold by default."""

    max_detections: int | None = MAX_DETECTIONS
    """Detections per image; -1 keeps all."""

    max_detections_per_class: Suppress[int | None] = None
    """Detections kept of each class over the whole dataset, for fixed AP; None keeps all."""

    cat_threshold: float = CAT_THRESHOLD
    """Mode cat-thr drops calibrated scores below it."""

    cat_scale: float | None = None
    """Mode cat-scale multiplies calibrated scores by it; by default by each image's background ratio."""

    stage_average: Average | None = None
    """What is averaged over the stages of a cascade; by default what the detector's framework averages."""

    skip_empty: Suppress[bool | None] = None
    """Boxes without area are no candidates of NMS; by default as in the detector's framework."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the option, its value and its bound."""
        if self.tail_mask is not None:
            # A tuple: configs are compared, hashed and stored as JSON.
            object.__setattr__(self, "tail_mask", tuple(map(bool, self.tail_mask)))
        if not self.score_threshold >= 0:
            raise ValueError(f"score_threshold is {self.score_threshold}, expected at least 0")
        if self.iou_threshold is not None and not 0 <= self.iou_threshold <= 1:
            raise ValueError(f"iou_threshold is {self.iou_threshold}, expected 0 to 1")
        if self.max_detections is not None and self.max_detections < 1 and self.max_detections != -1:
            raise ValueError(f"max_detections is {self.max_detections}, expected at least 1, or -1 for all")

    @classmethod
    def from_options(cls, **options: Any) -> FusionConfig:
        """Returns a config with these fields. Raises ValueError naming an option that is none of them."""
        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise ValueError(f"option {name!r}, expected one of {', '.join(known)}")
        return cls(**options)

    def fusion(self, **changes: Any) -> FusionConfig:
        """Returns the fusion options of a command's config, with changes."""
        own = {field.name: getattr(self, field.name) for field in fields(FusionConfig)}
        return FusionConfig(**own | changes)


_NO_HYPERPARAMETERS = ("head", "method", "fit_cache")
"""Fields of `ClassifierConfig` besides the methods' hyperparameters."""


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Which calibrated classifier is used: a trained head, or a method without training."""

    head: Path | None = None
    """Head made by `python -m calib.train`, or the folder `learned` of `python -m fuse select`."""

    method: str | None = None
    """Or a method without training: norcal, logit-adjustment, logn, tau-norm, fracal, temperature, platt, ncm or
    cosine-ncm; `python -m calib --list` describes them."""

    gamma: float | None = None
    """Exponent γ of norcal."""

    factor: NorCalFactor | None = None
    """What norcal divides by: the power N^γ of the count N, or the effective number (1 - γ^N) / (1 - γ)."""

    variant: NorCalVariant | None = None
    """What norcal divides: probabilities, which are normalized again or left unnormalized, or logits."""

    tau: float | None = None
    """Exponent τ of tau-norm; factor τ of logit-adjustment."""

    lam: float | None = None
    """Exponent λ of fracal."""

    temperature: float | None = None
    """Temperature T of temperature, ncm and cosine-ncm; fitted by default."""

    penalty: float | None = None
    """Weight of platt's prior: how little it changes classes of few RoIs."""

    count: CountColumn | None = None
    """Training counts that norcal, logit-adjustment and fracal use."""

    num_images: int | None = None
    """Images of the training set, for fracal; by default as the cache records it."""

    fit_cache: str | None = None
    """Cache of the same detector that the method is fitted on, a path or an fsspec URL. By default the val cache
    itself; logn, fracal, temperature, platt and ncm need a train cache."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the options that exclude each other."""
        if self.head is not None and self.method is not None:
            raise ValueError(f"head is {self.head} and method is {self.method!r}: give one of them")
        given = [*self.hyperparameters, *(["fit_cache"] if self.fit_cache is not None else [])]
        if self.method is None and given:
            raise ValueError(f"{given[0]} is given without --method")

    @property
    def hyperparameters(self) -> dict[str, object]:
        """Hyperparameters of the method that are given, by name."""
        values = {field.name: getattr(self, field.name) for field in fields(ClassifierConfig)}
        return {name: value for name, value in values.items() if name not in _NO_HYPERPARAMETERS and value is not None}

    def require_classifier(self, mode: str) -> None:
        """Raises ValueError if the mode needs a calibrated classifier and neither a head nor a method is given."""
        if self.head is None and self.method is None and mode not in UNCALIBRATED_MODES:
            raise ValueError(f"mode is {mode!r}, which needs a calibrated classifier: give --head or --method")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How detections are evaluated."""

    annotations: Path
    """LVIS or COCO annotation file of the images evaluated on, or the name of a dataset in detectron2's catalog. For a
    test set, a file without annotations: detections are written, but not evaluated."""

    protocol: Literal["federated", "exhaustive"] | None = None
    """How the dataset is annotated: federated, each class in some images only, evaluated by LVIS's protocol; or
    exhaustive, every class in every image, by COCO's protocol. By default as the file tells: LVIS's files are
    federated, their images have neg_category_ids or not_exhaustive_category_ids."""

    iou_types: tuple[Literal["segm", "bbox"], ...] = ()
    """Mask AP, box AP or both; by default mask AP where there are masks, else box AP."""

    bins: tuple[float, ...] = (10, 100, 1000)
    """Edges between the bins of training instances."""

    max_detections: int | None = None
    """Detections per image; by default 300 by LVIS's protocol, 100 by COCO's."""

    fixed_ap: bool = False
    """Fixed AP: the best 10,000 detections per class over the dataset and no cap per image."""

    engine: Literal["native", "hotcoco", "lvis", "pycocotools"] = ENGINE
    """What computes precision and recall, all with equal results: kernels of our own, hotcoco, or the official packages
    of the two protocols, lvis and pycocotools, which are slow."""

    bootstrap: int = BOOTSTRAP_SAMPLES
    """Resamples of the images, for intervals of AP and of differences between rows; 0 leaves them out."""

    strict: bool = False
    """Refuse annotations of which something would be left out or changed, in place of a warning."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the option and its value."""
        if self.bootstrap < 0:
            raise ValueError(f"bootstrap is {self.bootstrap}, expected at least 0")
        if self.max_detections is not None and self.max_detections < 1:
            raise ValueError(f"max_detections is {self.max_detections}, expected at least 1")
        edges(self.bins)

    @property
    def bin_edges(self) -> tuple[float, ...]:
        """Edges of the bins, both ends included."""
        return edges(self.bins)

    @property
    def row_options(self) -> dict[str, Any]:
        """The options of `fuse.evaluation.compare.compare_rows` that are the same for all rows."""
        return {
            "iou_types": self.iou_types,
            "bins": self.bin_edges,
            "protocol": self.protocol,
            "fixed_ap": self.fixed_ap,
            "max_detections": self.max_detections,
            "engine": self.engine,
        }


@dataclass(frozen=True, kw_only=True)
class ErrorsConfig:
    """Whether the commands say where the errors are."""

    errors: bool = False
    """Also print where the errors are, and write errors.csv where there is a folder: TIDE's error types, calibration
    error, and which objects of each bin are taken for other classes."""
