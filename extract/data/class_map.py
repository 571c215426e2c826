"""Which output of a detector each class of a class table is, and what follows for logits, boxes and weights.

Letters in shapes: `R` RoIs, `S` stages, `N` outputs of the detector besides background, `K` classes of the table, `C`
channels. Background is last on both sides.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

MIN_LOGIT = -1e4
"""Logit of a score that is exactly 0: its exponential is 0 as well, and half floats can represent it."""
OUTPUTS_KEY, COUNT_KEY = "class_outputs", "num_outputs"
"""Keys of a detector's description; without them output i is class i."""


@dataclass(frozen=True)
class ClassMap:
    """A detector's output for each class of a class table.

    Classes without output are never detected. Outputs that are no class are part of background.

    Attributes:
        outputs: of each class its output, 0…N-1, or -1 where the detector has none; no output occurs twice.
        num_outputs: N, the detector's classes besides background.
    """

    outputs: tuple[int, ...]
    num_outputs: int

    def __post_init__(self) -> None:
        """Raises ValueError for an output that does not exist or occurs twice."""
        uses = Counter(output for output in self.outputs if output != -1)
        bad = [output for output, count in uses.items() if not 0 <= output < self.num_outputs or count > 1]
        if bad:
            raise ValueError(f"{OUTPUTS_KEY} has {bad[0]}, expected each of 0…{self.num_outputs - 1} at most once")

    @classmethod
    def from_description(cls, detector: Mapping[str, Any]) -> ClassMap | None:
        """Returns the map in a detector's description; None if output i is class i."""
        if OUTPUTS_KEY not in detector:
            return None
        return cls(tuple(map(int, detector[OUTPUTS_KEY])), int(detector[COUNT_KEY]))

    def to_description(self) -> dict[str, Any]:
        """Returns the entries of a detector's description, JSON values."""
        return {OUTPUTS_KEY: list(self.outputs), COUNT_KEY: self.num_outputs}

    @property
    def num_classes(self) -> int:
        """K, without background."""
        return len(self.outputs)

    @property
    def is_identity(self) -> bool:
        """Whether output i is class i for all of them."""
        return self.outputs == tuple(range(self.num_outputs))

    @cached_property
    def has_output(self) -> np.ndarray:
        """(K,) bool, whether the detector has the class."""
        return self._outputs >= 0

    @cached_property
    def missing(self) -> np.ndarray:
        """(m,) int64, ascending: classes without output."""
        return np.flatnonzero(~self.has_output)

    @cached_property
    def surplus(self) -> np.ndarray:
        """(s,) int64, ascending: outputs that are no class."""
        return np.setdiff1d(np.arange(self.num_outputs), self._outputs)

    @cached_property
    def classes(self) -> np.ndarray:
        """(N,) int64, the class of each output, -1 where it is none."""
        classes = np.full(self.num_outputs, -1)
        classes[self._outputs[self.has_output]] = np.flatnonzero(self.has_output)
        return classes

    def __str__(self) -> str:
        moved = sum(c not in (i, -1) for i, c in enumerate(self.classes.tolist()))
        counts = {"moved": moved, "no category": len(self.surplus), "categories without output": len(self.missing)}
        return f"{self.num_outputs:,} ({', '.join(f'{n:,} {text}' for text, n in counts.items() if n)})"

    def map_logits(self, logits: np.ndarray, activation: str, average: str) -> np.ndarray:
        """Returns logits (R, S, K+1) of the classes from the detector's (R, S, N+1).

        The scores of the K classes are exactly those of the detector. With softmax, the outputs that are no class are
        added to background: its logit is the logarithm of the sum of their exponentials. Where the stages' logits are
        averaged, this sum is of the mean logits, and every stage's background is shifted by the same amount. With
        sigmoid, the scores of classes do not depend on each other and the outputs are left out.
        """
        mapped = np.full((*logits.shape[:2], self.num_classes + 1), MIN_LOGIT, logits.dtype)
        mapped[..., :-1][..., self.has_output] = logits[..., self._outputs[self.has_output]]
        mapped[..., -1] = logits[..., -1]
        if len(self.surplus) and activation == "softmax":
            folded = logits[..., [*self.surplus, -1]]
            mapped[..., -1] = np.logaddexp.reduce(folded, axis=-1)
            if average == "logits":
                of_mean = np.logaddexp.reduce(folded.mean(1), axis=-1)
                mapped[..., -1] += (of_mean - mapped[..., -1].mean(1))[:, None]
        return mapped

    def map_boxes(self, boxes: np.ndarray, proposals: np.ndarray) -> np.ndarray:
        """Returns class-specific boxes (R, K, 4) from the detector's (R, N, 4); class-agnostic ones (R, 4) unchanged.

        A class without output has the unrefined `proposals` (R, 4) of the last stage.
        """
        if boxes.ndim == 2:
            return boxes
        mapped = np.repeat(proposals[:, None].astype(boxes.dtype), self.num_classes, 1)
        mapped[:, self.has_output] = boxes[:, self._outputs[self.has_output]]
        return mapped

    def map_rows(self, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the classifier's rows (K+1, C), (K+1,) from the detector's (N+1, C), (N+1,).

        Background keeps its own row, even if other outputs are part of it, which one row cannot express.
        """
        rows = [*self.outputs, self.num_outputs]
        mapped = weight[rows], bias[rows]
        mapped[0][self.missing], mapped[1][self.missing] = 0, MIN_LOGIT
        return mapped

    def unmap_rows(
        self, weight: np.ndarray, bias: np.ndarray, own: tuple[np.ndarray, np.ndarray], activation: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the detector's rows (N+1, C), (N+1,) with those of the classes, (K+1, C), (K+1,), in them.

        Outputs that are no class keep the rows in `own`, the detector's, if background does: both together are the
        background of the classes. With another background, or with sigmoid, their scores become 0.
        """
        rows, known = (own[0].copy(), own[1].copy()), np.flatnonzero(self.has_output)
        same_background = np.array_equal(weight[-1], own[0][-1]) and bias[-1] == own[1][-1]
        for array, values in zip(rows, (weight, bias), strict=True):
            array[self._outputs[known]], array[-1] = values[known], values[-1]
        if activation != "softmax" or not same_background:
            rows[0][self.surplus], rows[1][self.surplus] = 0, MIN_LOGIT
        return rows

    def to_outputs(self, labels: np.ndarray) -> np.ndarray:
        """Returns the detector's labels of classes (D,). Raises ValueError for a class without output."""
        outputs = self._outputs[labels]
        if (outputs < 0).any():
            raise ValueError(f"class {labels[outputs < 0][0]} has no output of the detector")
        return outputs

    def to_classes(self, outputs: np.ndarray) -> np.ndarray:
        """Returns the classes of the detector's labels (D,); -1 for outputs that are no class."""
        return self.classes[outputs]

    def output_values(self, values: Sequence[Any], other: Sequence[Any]) -> list[Any]:
        """Returns one value per output: that of its class in `values` (K), or for no class that in `other` (N)."""
        return [values[c] if c >= 0 else other[i] for i, c in enumerate(self.classes.tolist())]

    @cached_property
    def _outputs(self) -> np.ndarray:
        return np.array(self.outputs, np.int64)
