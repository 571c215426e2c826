"""The classes that an exported detector's labels stand for, in the detector's own order."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from calib.heads import Head
from calib.posthoc import Posthoc
from extract.detectors.base import NO_CLASS, Detector, named_classes
from fuse.learned import LearnedFusion


class OutputClasses(NamedTuple):
    """Names and category ids of a detector's outputs, background left out.

    Attributes:
        names: the category's name, else that which the detector's framework keeps, else `NO_CLASS`.
        category_ids: -1 for an output that is no category.
    """

    names: tuple[str, ...]
    category_ids: tuple[int, ...]

    def to_json(self, first_label: int) -> bytes:
        """Returns a list of label, category_id (null for none) and name; the framework counts from `first_label`."""
        rows = [
            {"label": label, "category_id": None if category_id < 0 else category_id, "name": name}
            for label, (name, category_id) in enumerate(zip(self.names, self.category_ids, strict=True), first_label)
        ]
        return msgspec.json.format(msgspec.json.encode(rows))


NO_CLASSES = OutputClasses((), ())


def output_classes(detector: Detector, scorer: Head | Posthoc | LearnedFusion) -> OutputClasses:
    """Returns the classes of the detector's outputs for which the scorer was made."""
    class_map = scorer.class_map
    if class_map is None:
        return OutputClasses(scorer.class_names, scorer.category_ids)
    found = named_classes(detector)
    own = found.names if found else (NO_CLASS,) * class_map.num_outputs
    names = class_map.output_values(scorer.class_names, own)
    return OutputClasses(tuple(names), tuple(class_map.output_values(scorer.category_ids, [-1] * len(own))))
