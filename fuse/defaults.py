"""The default values of fusion, NMS and evaluation. Every signature and command-line option takes them from here."""

from __future__ import annotations

from typing import Literal

ENGINE: Literal["native"] = "native"
"""What computes precision and recall of the evaluation."""

MAX_DETECTIONS = 300
"""Detections kept per image, as in LVIS evaluation."""

COCO_MAX_DETECTIONS = 100
"""Detections evaluated by COCO's protocol."""

IOU_THRESHOLD = 0.5
"""NMS removes a box whose IoU with a better box of its class is above this."""

SCORE_THRESHOLD = 0.0
"""Only scores above this become detections."""

TAIL = 100
"""Classes with fewer training instances than this are tail classes."""

CAT_THRESHOLD = 0.05
"""Mode cat-thr sets calibrated scores below this to 0."""

FIXED_AP_DETECTIONS_PER_CLASS = 10_000
"""Fixed AP evaluates this many best detections of each class over the dataset (Dave et al. 2021)."""

BOOTSTRAP_SAMPLES = 1000
"""Resamples of the images, for intervals of AP."""

CONFIDENCE = 0.95
"""Share of the resamples inside an interval."""
