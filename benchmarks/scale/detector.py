"""Mini-LVIS's detector with any number of classes, for images of 32 pixels."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torchvision.models.detection import MaskRCNN

from benchmarks.minilvis import detector

DETECTOR = "torchvision:benchmarks.scale.detector:mask_rcnn"
EDGE = 64
"""Pixels that images are resized to."""
TRAINED = Path(__file__).parents[1] / "minilvis" / "weights" / "plain.safetensors"


def mask_rcnn(num_classes: int) -> MaskRCNN:
    """Builds the detector."""
    return detector.mask_rcnn(num_classes, min_size=EDGE, max_size=EDGE, _skip_resize=False)


def write_weights(file: Path, num_classes: int) -> None:
    """Writes Mini-LVIS's trained weights with a random classifier."""
    weights = load_file(TRAINED)
    name = "roi_heads.box_predictor.cls_score"
    torch.manual_seed(0)
    classifier = torch.nn.Linear(weights[f"{name}.weight"].shape[1], num_classes + 1)
    weights |= {f"{name}.{key}": value.detach() for key, value in classifier.state_dict().items()}
    save_file(weights, file)
