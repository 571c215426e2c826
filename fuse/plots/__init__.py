"""Plots of results. Each draws into a matplotlib `Axes`, or a new one, and returns it; nothing is shown or saved.

The examples share this set-up, detections of one image before and after calibration:

>>> import numpy as np, pandas as pd, fuse, fuse.plots
>>> classes = pd.DataFrame({"category_id": [1, 2], "name": ["zebra", "horse"], "frequency": ["r", "f"],
...                         "image_count": [4, 900], "instance_count": [4, 2000]})
>>> images = [{"id": 1, "height": 60, "width": 80, "neg_category_ids": [], "not_exhaustive_category_ids": []}]
>>> objects = [{"id": i, "image_id": 1, "category_id": i, "bbox": [40 * i - 40, 10, 30, 30], "area": 900}
...            for i in (1, 2)]
>>> categories = [{"id": 1, "name": "zebra"}, {"id": 2, "name": "horse"}]
>>> annotations = {"images": images, "annotations": objects, "categories": categories}
>>> boxes = np.array([[0, 10, 30, 40], [40, 10, 70, 40]], np.float32)
>>> before = fuse.Detections(np.array([1, 1]), np.array([2, 2]), np.float32([0.6, 0.9]), boxes)
>>> after = fuse.Detections(np.array([1, 1]), np.array([1, 2]), np.float32([0.7, 0.9]), boxes)
>>> rows = {"original": before, "calibrated": after}
>>> tables = {name: fuse.per_class_ap(annotations, row, classes, iou_type="bbox") for name, row in rows.items()}
"""

from __future__ import annotations

from fuse.plots.ap import ap_by_count, per_bin, recall
from fuse.plots.errors import errors
from fuse.plots.objects import confusions, gallery

__all__ = ["ap_by_count", "confusions", "errors", "gallery", "per_bin", "recall"]
