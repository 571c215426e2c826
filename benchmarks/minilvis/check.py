"""See quickly whether a detector shows the long tail: AP per bin of training instances, and its oracle's.

    python -m benchmarks.minilvis.check --weights benchmarks/minilvis/weights/plain.safetensors

A look at part of val while a detector trains; `make tables` makes the figures that count.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torchvision.models.detection import MaskRCNN

import extract
from benchmarks.minilvis.detector import mask_rcnn
from extract.cache.format import num_blocks
from extract.data.annotations import read_annotations
from extract.detectors.torchvision import TorchvisionDetector
from extract.detectors.weights import load_weights
from extract.extractor import Extraction
from fuse.commands.paper_rows import paper_rows
from fuse.evaluation.lvis import load_annotations
from fuse.evaluation.metrics import evaluate_rows
from fuse.inference import detect_many


@dataclass(frozen=True)
class Config:
    """What to check."""

    weights: Path
    data: Path = Path("data/minilvis")
    images: int = 100
    """The first so many of val."""


def evaluate(model: MaskRCNN, data: Path, images: int) -> pd.DataFrame:
    """AP of the detector at thresholds 0.05 and 0.0 and of its oracle, as `fuse.commands.paper_rows.evaluate_rows` tells it.

    The model may be in training: a copy of it is looked at.
    """
    annotations, train = (read_annotations(data / f"{split}.json") for split in ("val", "train"))
    options = {"detector": "", "weights": Path(), "out": "", "split": "val", "level": "logits", "proposals": 300}
    options |= {"annotations": annotations.path, "train_annotations": train.path, "images": data / "val"}
    config = extract.Config(**options)
    job = Extraction(config, annotations, TorchvisionDetector(copy.deepcopy(model)))
    job.positions = job.positions[:images]
    rois = [one for block in range(num_blocks(len(job.positions))) for one in job.block(block)]
    description = job.detector.description
    cache = extract.write_cache(
        "memory://check.zarr", rois, train.classes, split="val", level="logits", detector=description, overwrite=True
    )
    truth = load_annotations(annotations.path, cache.images["image_id"])
    detections = detect_many(cache, paper_rows(None))
    return evaluate_rows(truth, detections, cache.classes, iou_types=("bbox", "segm"))[0]


def main(config: Config) -> None:
    """Prints the table."""
    model = mask_rcnn(len(read_annotations(config.data / "val.json").classes))
    load_weights(model, config.weights)
    table = evaluate(model, config.data, config.images)
    print(table.to_string(float_format="{:.1f}".format))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
