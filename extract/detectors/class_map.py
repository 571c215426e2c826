"""A detector whose outputs are the classes of a class table, in its order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from extract.cache.format import Layers
from extract.data.class_map import ClassMap
from extract.detectors.base import (
    Detector,
    ForwardOutput,
    Image,
    ImageDetections,
    SelectProposals,
    named_classes,
    reader_of,
    thresholds_of,
)
from extract.detectors.summary import DetectorSummary
from extract.rois import RoIs

if TYPE_CHECKING:
    import torch


def map_detector(detector: Detector, class_map: ClassMap | None) -> Detector:
    """Returns the detector with outputs in the order of a class table; with None the detector itself.

    Raises ValueError if the map is of another number of outputs, or the detector has another map already.
    """
    if isinstance(detector, MappedDetector):
        if class_map != detector.class_map:
            raise ValueError(f"detector {detector.description['name']}: its classes are in another order already")
        return detector
    if class_map is None:
        return detector
    if class_map.num_outputs != detector.num_classes:
        raise ValueError(
            f"detector {detector.description['name']}: number of classes {detector.num_classes}, "
            f"expected {class_map.num_outputs}"
        )
    return MappedDetector(detector, class_map)


class MappedDetector(DetectorSummary):
    """A detector whose classes are those of a class table; see `extract.detectors.base.Detector`.

    Only results of `ForwardOutput.to_framework` have the labels of the framework.

    Attributes:
        original: the detector.
        class_map: its outputs.
        model: the framework's model.
    """

    def __init__(self, original: Detector, class_map: ClassMap):
        self.original, self.class_map = original, class_map
        self.num_classes = class_map.num_classes
        self.stages, self.size, self.has_masks = original.stages, original.size, original.has_masks
        self.own_classes = named_classes(original)
        self.read_image, self.own_thresholds = reader_of(original), thresholds_of(original)
        self.description: dict[str, Any] = {**original.description, **class_map.to_description()}

    @property
    def model(self) -> Any:
        """The framework's model."""
        return self.original.model  # type: ignore[attr-defined]  # every framework's adapter has one

    @property
    def device(self) -> torch.device:
        """See `extract.detectors.base.Detector.device`."""
        return self.original.device

    def forward(
        self, images: Sequence[Image], level: str, select_proposals: SelectProposals | None = None
    ) -> MappedOutput:
        """See `extract.detectors.base.Detector.forward`."""
        return self._mapped(self.original.forward(images, level, select_proposals))

    def forward_preprocessed(
        self, inputs: Any, image_ids: Sequence[int], level: str, select_proposals: SelectProposals | None = None
    ) -> MappedOutput:
        """See `extract.detectors.base.Detector.forward_preprocessed`."""
        return self._mapped(self.original.forward_preprocessed(inputs, image_ids, level, select_proposals))

    def fc_layers(self, level: str) -> list[Layers]:
        """See `extract.detectors.base.Detector.fc_layers`; background is the detector's own row."""
        return [[*layers[:-1], self.class_map.map_rows(*layers[-1])] for layers in self.original.fc_layers(level)]

    def state_dict_with_classifiers(self, classifiers: Layers) -> dict[str, torch.Tensor]:
        """See `extract.detectors.base.Detector.state_dict_with_classifiers` and `ClassMap.unmap_rows`."""
        own = [layers[-1] for layers in self.original.fc_layers("embedding")]
        if not own:
            raise ValueError("the classifier is not one linear layer per stage")
        activation = self.description["activation"]
        pairs = zip(classifiers, own, strict=True)
        return self.original.state_dict_with_classifiers(
            [self.class_map.unmap_rows(*rows, own_rows, activation) for rows, own_rows in pairs]
        )

    def to_arrays(self, result: Any) -> tuple[ImageDetections, np.ndarray | None]:
        """See `extract.detectors.base.Detector.to_arrays`; labels are classes of the table."""
        detections, masks = self.original.to_arrays(result)
        return detections._replace(labels=self.class_map.to_classes(detections.labels)), masks

    def resized(self, shorter: int, longer: int) -> MappedDetector:
        """See `extract.detectors.base.Detector.resized`."""
        return MappedDetector(self.original.resized(shorter, longer), self.class_map)

    def _mapped(self, output: ForwardOutput) -> MappedOutput:
        return MappedOutput(output, self.class_map, self.description["activation"], self.description["stage_average"])


class MappedOutput:
    """The output of a forward pass with classes of a class table; see `extract.detectors.base.ForwardOutput`."""

    def __init__(self, original: ForwardOutput, class_map: ClassMap, activation: str, stage_average: str):
        self._original, self._class_map = original, class_map
        self._activation, self._stage_average = activation, stage_average

    @cached_property
    def rois(self) -> list[RoIs]:
        """See `extract.detectors.base.ForwardOutput.rois`."""
        return [self._map_rois(rois) for rois in self._original.rois]

    def masks(self) -> list[np.ndarray]:
        """See `extract.detectors.base.ForwardOutput.masks`."""
        return self._original.masks()

    def to_framework(self, detections: Sequence[ImageDetections]) -> list[Any]:
        """See `extract.detectors.base.ForwardOutput.to_framework`; labels are the detector's outputs."""
        own = [one._replace(labels=self._class_map.to_outputs(one.labels)) for one in detections]
        return self._original.to_framework(own)

    def _map_rois(self, rois: RoIs) -> RoIs:
        logits = self._class_map.map_logits(rois.logits, self._activation, self._stage_average)
        return replace(rois, logits=logits, boxes=self._class_map.map_boxes(rois.boxes, rois.proposals[:, -1]))
