"""The configuration of a training run. Imports nothing heavy: the command line reads it first."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

Kind = Literal["linear", "2fc_rand", "3fc_rand", "3fc_ft"]
Precision = Literal["fp32", "bf16", "fp16"]
HEADS: tuple[str, ...] = get_args(Kind)
PRECISIONS: tuple[str, ...] = get_args(Precision)

_WITHOUT_INFLUENCE = ("cache", "out", "device", "checkpoint_every", "overwrite")
"""Fields that do not decide which head comes out; the cache does, but by fingerprint, not by path."""


@dataclass(frozen=True)
class Config:
    """Train new classification heads, one per stage, on class-balanced RoIs of a train cache.

    Example: python -m calib.train --cache train.zarr --out head --head 3fc_ft

    The same command again resumes an interrupted run, exactly. The defaults are the paper's.
    """

    cache: str
    """Train cache made by `python -m extract`: a path or an fsspec URL."""

    out: str
    """Folder of the finished head, its checkpoints and its metrics."""

    head: Kind = "3fc_ft"
    """linear: a new classifier on the detector's own embedding; 2fc_rand, 3fc_rand: new fully connected
    layers; 3fc_ft: the detector's own layers, all of them trained further."""

    hidden: int = 1024
    """Width of the new hidden layers of 2fc_rand and 3fc_rand."""

    classes_per_step: int = 16
    """Classes drawn for a step."""

    images_per_class: int = 1
    """Images drawn for each of these classes."""

    steps: int = 12_000
    """Length of the training; the paper's epoch is 1,000 steps."""

    lr: float = 0.01
    """Learning rate at the beginning."""

    milestones: tuple[float, ...] = (8 / 12, 11 / 12)
    """When the learning rate falls to a tenth: fractions of `steps` (below 1) or numbers of steps."""

    momentum: float = 0.9
    """Momentum of SGD."""

    weight_decay: float = 1e-4
    """Weight decay of SGD."""

    seed: int = 0
    """Seed of sampling and of new layers."""

    device: str = "auto"
    """Torch device; auto is CUDA where there is one, the CPU elsewhere."""

    precision: Precision = "fp32"
    """Arithmetic of the matrix products; weights stay float32."""

    checkpoint_every: int = 1000
    """Steps between checkpoints."""

    overwrite: bool = False
    """Start anew where `out` holds a head or a checkpoint."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the field, its value and what was expected."""
        self._expect("head", self.head in HEADS, f"one of {', '.join(HEADS)}")
        for name in ("hidden", "classes_per_step", "images_per_class", "steps", "checkpoint_every"):
            self._expect(name, getattr(self, name) >= 1, "at least 1")
        self._expect("lr", self.lr > 0, "more than 0")
        self._expect("momentum", 0 <= self.momentum < 1, "a number in [0, 1)")
        self._expect("weight_decay", self.weight_decay >= 0, "at least 0")
        self._expect("seed", self.seed >= 0, "at least 0")
        self._expect("milestones", all(m > 0 for m in self.milestones), "numbers above 0")
        self._expect("precision", self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")

    def lr_at(self, step: int) -> float:
        """Learning rate of step number `step` (from 0)."""
        steps = (round(m * self.steps) if m < 1 else m for m in self.milestones)
        return self.lr / 10 ** sum(step >= s for s in steps)

    def identity(self, fingerprint: str) -> dict[str, Any]:
        """What decides the resulting head, the cache being told by its fingerprint; JSON types."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _WITHOUT_INFLUENCE}
        return {"cache": fingerprint, **values, "milestones": list(self.milestones)}

    def _expect(self, name: str, fulfilled: bool, expected: str) -> None:
        if not fulfilled:
            raise ValueError(f"{name} is {getattr(self, name)!r}, expected {expected}")
