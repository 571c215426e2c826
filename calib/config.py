"""Configuration of a training run. Imports only the standard library, so that `--help` is fast."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

HeadType = Literal["linear", "2fc_rand", "3fc_rand", "3fc_ft", "3fc_lowrank", "lws", "disalign"]
LossName = Literal["cross-entropy", "balanced-softmax", "reweighted", "seesaw", "bags", "federated", "eql"]
Sampling = Literal["class-balanced", "instance-balanced", "square-root", "progressive"]
Precision = Literal["fp32", "bf16", "fp16"]
HeadTypeOrAuto = Literal["auto", HeadType]
HEAD_TYPES: tuple[str, ...] = get_args(HeadType)
PRECISIONS: tuple[str, ...] = get_args(Precision)
LOSS_NAMES: tuple[str, ...] = get_args(LossName)
SAMPLINGS: tuple[str, ...] = get_args(Sampling)

_IDENTITY_EXCLUDES = (
    *("cache", "holdout", "out", "device", "checkpoint_every", "evaluate_every", "overwrite", "memory_limit"),
)
"""Fields that do not change the resulting head, or do so through the images trained on: `identity` has the fingerprint
of these instead of paths."""


@dataclass(frozen=True)
class Config:
    """Trains new classification heads, one per stage, on class-balanced RoIs of a train cache.

    Example: python -m calib.train --cache train.zarr --out head --head-type 3fc_ft

    The same command again resumes an interrupted run, exactly. The defaults are the paper's. `python -m calib --list`
    describes all calibration methods.
    """

    cache: str
    """Train cache made by `python -m extract`: a path or an fsspec URL."""

    out: str
    """Folder of the finished head, its checkpoints and its metrics."""

    holdout: str | None = None
    """Cache made with --split holdout, whose images are left out, so that heads can be compared on them, and the run
    watched: accuracies and average precision on them, see --evaluate-every."""

    head_type: HeadTypeOrAuto = "auto"
    """auto: 3fc_ft, as in the paper, from pooled features; from hidden ones 3fc_ft or 3fc_lowrank, whichever has the
    lower loss on training images held out at first; from embeddings linear. linear: a new classifier on the
    detector's own embedding; 2fc_rand, 3fc_rand: new fully connected layers; 3fc_ft: all of the detector's own
    layers, fine-tuned, on hidden features without the first, which stays; 3fc_lowrank: on hidden features, with the
    first layer corrected in low rank; lws: the detector's own classifier, a scale per class is trained; disalign: the
    same, with scale, shift and a confidence."""

    loss: LossName = "cross-entropy"
    """What is minimised; `python -m calib --list` describes the losses. federated and eql train sigmoid scores."""

    sampling: Sampling = "class-balanced"
    """Classes are drawn uniformly, or by their training instances n: instance-balanced in proportion to n, square-root
    to its root; progressive begins with n and ends uniformly."""

    hidden: int = 1024
    """Width of the new hidden layers of 2fc_rand and 3fc_rand."""

    freeze_layers: int = 0
    """Number of the detector's own layers, from the first on, that are not trained; on hidden features the first
    never is, except for 3fc_lowrank."""

    classes_per_step: int = 16
    """Classes drawn per step."""

    images_per_class: int = 1
    """Images drawn per class and step."""

    rois_per_class: int | None = None
    """At most so many foreground RoIs per class and image, ground truth first, and as much background; by default
    all, as in the paper, and 4 with head type auto on hidden features. Most are near copies of one object."""

    steps: int = 12_000
    """Number of training steps; the paper's epoch is 1,000 steps."""

    lr: float = 0.01
    """Initial learning rate."""

    milestones: tuple[float, ...] = (8 / 12, 11 / 12)
    """When the learning rate is divided by 10: fractions of `steps` (below 1) or numbers of steps."""

    momentum: float = 0.9
    """Momentum of SGD."""

    weight_decay: float = 1e-4
    """Weight decay of SGD."""

    seed: int = 0
    """Seed of the sampler and of new layers."""

    device: str = "auto"
    """Torch device; auto is CUDA if available, else the CPU."""

    precision: Precision = "fp32"
    """Precision of the matrix products; weights stay float32."""

    memory_limit: float | None = None
    """Bytes of memory, such as 8e9, that a process may take: features are read step by step if they do not fit.
    Refused before work starts if too little. A GPU's memory does not count."""

    checkpoint_every: int = 1000
    """Steps from one checkpoint to the next."""

    evaluate_every: int = 500
    """Steps from one evaluation on the RoIs of --holdout to the next."""

    overwrite: bool = False
    """Start anew if `out` holds a head or a checkpoint."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what was expected."""
        types = ("auto", *HEAD_TYPES)
        self._expect("head_type", self.head_type in types, f"one of {', '.join(types)}")
        for name in ("hidden", "classes_per_step", "images_per_class", "steps", "checkpoint_every", "evaluate_every"):
            self._expect(name, getattr(self, name) >= 1, "at least 1")
        self._expect("memory_limit", self.memory_limit is None or self.memory_limit > 0, "more than 0")
        self._expect("rois_per_class", self.rois_per_class is None or self.rois_per_class >= 1, "at least 1")
        self._expect("freeze_layers", self.freeze_layers >= 0, "at least 0")
        self._expect("lr", self.lr > 0, "more than 0")
        self._expect("momentum", 0 <= self.momentum < 1, "a number in [0, 1)")
        self._expect("weight_decay", self.weight_decay >= 0, "at least 0")
        self._expect("seed", self.seed >= 0, "at least 0")
        self._expect("loss", self.loss in LOSS_NAMES, f"one of {', '.join(LOSS_NAMES)}")
        self._expect("sampling", self.sampling in SAMPLINGS, f"one of {', '.join(SAMPLINGS)}")
        self._expect("milestones", all(m > 0 for m in self.milestones), "numbers above 0")
        self._expect("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")

    def lr_at(self, step: int) -> float:
        """Returns the learning rate of step number `step` (from 0)."""
        steps = (round(m * self.steps) if m < 1 else m for m in self.milestones)
        return self.lr / 10 ** sum(step >= s for s in steps)

    def identity(self, fingerprint: str) -> dict[str, Any]:
        """Returns everything that decides the resulting head, as JSON types, with the cache's fingerprint.

        A run resumes only if this is unchanged. Heads and checkpoints store it, the head type as "head".
        """
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _IDENTITY_EXCLUDES}
        values |= {"freeze_layers": self.freeze_layers or None, "milestones": list(self.milestones)}
        # None where it is the default, as in heads of versions without this field.
        values |= {name: None for name in ("loss", "sampling") if values[name] == getattr(Config, name)}
        return {"cache": fingerprint, "head": values.pop("head_type"), **values}

    def _expect(self, name: str, is_valid: bool, expected: str) -> None:
        if not is_valid:
            raise ValueError(f"{name} is {getattr(self, name)!r}, expected {expected}")
