"""What an adapter shows of its detector."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from extract.detectors.identity import precision_of
from extract.utils.summarized import Summarized

if TYPE_CHECKING:
    import torch


class DetectorSummary(Summarized):
    """The part of an adapter that describes it; attributes are those of `extract.detectors.base.Detector`."""

    num_classes: int
    stages: tuple[float, ...]
    description: dict[str, Any]
    has_masks: bool
    size: tuple[int, int]

    @property
    def device(self) -> torch.device:
        """See `extract.detectors.base.Detector.device`."""
        raise NotImplementedError

    def summary(self) -> list[tuple[str, str]]:
        """Returns what `repr` shows: (name, text)."""
        about = self.description
        ious = ", ".join(f"{iou:g}" for iou in self.stages)
        boxes = "class-agnostic" if about.get("class_agnostic_boxes") else "one per class"
        masks = "class-agnostic" if self.has_masks else "none that a cache can keep"
        class_map = getattr(self, "class_map", None)
        return [
            ("Detector", f"{about['name']} ({about['framework']} {about.get('framework_version', '')})"),
            ("classes", f"{self.num_classes:,}"),
            *([("outputs", str(class_map))] if class_map else []),
            ("stages", f"{len(self.stages)}, matching IoU {ious}"),
            ("boxes", f"{boxes}; masks {masks}"),
            ("scores", f"{about.get('activation', 'softmax')}; NMS at IoU {about.get('nms_iou', 0.5):g}"),
            ("input", f"edges of {self.size[0]:,} to {self.size[1]:,} pixels"),
            ("device", f"{self.device}, {precision_of(about)}"),
        ]
