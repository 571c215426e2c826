"""Calibrated scores in the order of a detector's own outputs, for exports that run without this library's detectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from extract.data.class_map import MIN_LOGIT, ClassMap
from fuse.export.module import CalibratedScores


class OwnOrderScores(nn.Module):
    """`CalibratedScores` of a detector whose outputs are in another order than the classes.

    Letters in shapes: `R` RoIs, `S` stages, `N` outputs of the detector, `K` classes, `D` axes of a feature.

    Attributes:
        num_outputs: N, without background.
    """

    outputs: Tensor
    folded: Tensor
    known: Tensor

    def __init__(self, scores: CalibratedScores, class_map: ClassMap):
        super().__init__()
        self.scores, self.num_outputs = scores, class_map.num_outputs
        self.adds_outputs = len(class_map.surplus) > 0 and scores.activation == "softmax"
        missing_column = class_map.num_outputs + 1
        outputs = [output if output >= 0 else missing_column for output in class_map.outputs]
        self.register_buffer("outputs", torch.tensor(outputs))
        self.register_buffer("folded", torch.tensor([*class_map.surplus.tolist(), class_map.num_outputs]))
        self.register_buffer("known", torch.from_numpy(class_map.has_output.nonzero()[0]))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the arguments of `forward`."""
        return self.scores.inputs

    @property
    def num_stages(self) -> int:
        """S."""
        return self.scores.num_stages

    def forward(self, features: Tensor, logits: Tensor, objectness: Tensor | None = None) -> Tensor:
        """Returns (R, N+1) scores of features (R, S, *D) and the detector's logits (R, S, N+1), background last.

        Outputs that are no class score 0. `objectness` (R,) is needed if it is among `inputs`.
        """
        logits = logits.float()
        inputs = (features, self._map_logits(logits), *([] if objectness is None else [objectness]))
        scores = self.scores(*inputs)
        own = torch.zeros_like(logits[:, 0])
        own[:, self.outputs[self.known]] = scores[:, self.known]
        own[:, -1] = scores[:, -1]
        return own

    def _map_logits(self, logits: Tensor) -> Tensor:
        """Computes `ClassMap.map_logits` on tensors."""
        lowest = torch.full_like(logits[..., :1], MIN_LOGIT)
        classes = torch.cat([logits, lowest], -1)[..., self.outputs]
        background = logits[..., -1:]
        if self.adds_outputs:
            folded = logits[..., self.folded]
            background = folded.logsumexp(-1, keepdim=True)
            if self.scores.original_average == "logits":
                of_mean = folded.mean(1, keepdim=True).logsumexp(-1, keepdim=True)
                background = background + of_mean - background.mean(1, keepdim=True)
        return torch.cat([classes, background], -1)
