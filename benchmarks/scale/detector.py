"""Mini-LVIS's detector with LVIS v1's number of classes, for images of 32 pixels."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torchvision.models.detection import MaskRCNN

from benchmarks.minilvis import detector

DETECTOR = "torchvision:benchmarks.scale.detector:mask_rcnn"
NUM_CLASSES = 1203
EDGE = 64
"""Pixels that images are resized to."""
TRAINED = Path(__file__).parents[1] / "minilvis" / "weights" / "plain.safetensors"


def mask_rcnn() -> MaskRCNN:
    """Builds the detector."""
    return detector.mask_rcnn(NUM_CLASSES, min_size=EDGE, max_size=EDGE, _skip_resize=False)


def write_weights(file: Path) -> None:
    """Writes Mini-LVIS's trained weights with a random classifier of `NUM_CLASSES` classes."""
    weights = load_file(TRAINED)
    name = "roi_heads.box_predictor.cls_score"
    torch.manual_seed(0)
    classifier = torch.nn.Linear(weights[f"{name}.weight"].shape[1], NUM_CLASSES + 1)
    weights |= {f"{name}.{key}": value.detach() for key, value in classifier.state_dict().items()}
    save_file(weights, file)
