"""Quick check whether a detector has a long tail: AP per bin of training instances, and its oracle's.

    python -m benchmarks.minilvis.check --weights benchmarks/minilvis/weights/plain.safetensors

Evaluates part of val, for detectors in training; `make tables` evaluates all of it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torchvision.models.detection import MaskRCNN

import extract
from benchmarks.minilvis.detector import mask_rcnn
from calib.scoring import Original
from extract.cache.format import num_blocks
from extract.data.annotations import read_annotations
from extract.detectors.torchvision import TorchvisionDetector
from extract.detectors.weights import load_weights
from extract.extractor import Extractor
from fuse.commands.paper_rows import paper_rows
from fuse.config import FusionConfig
from fuse.evaluation.dataset import load_annotations
from fuse.evaluation.metrics import evaluate_rows
from fuse.fusion import Fusion
from fuse.inference import detect_many


@dataclass(frozen=True)
class Config:
    """What to check."""

    weights: Path
    data: Path = Path("data/minilvis")
    images: int = 100
    """Only this many images of val."""


def evaluate(model: MaskRCNN, data: Path, images: int) -> pd.DataFrame:
    """Returns AP of the detector at score thresholds 0.05 and 0.0 and of its oracle, in the form of `evaluate_rows`.

    The model may be in training: it is copied.
    """
    annotations, train = (read_annotations(data / f"{split}.json") for split in ("val", "train"))
    config = extract.Config(
        detector="",
        weights=Path(),
        out="",
        split="val",
        level="logits",
        proposals=300,
        annotations=annotations.path,
        train_annotations=train.path,
        images=data / "val",
    )
    extractor = Extractor(config, annotations, TorchvisionDetector(copy.deepcopy(model)))
    extractor.positions = extractor.positions[:images]
    rois = [one for block in range(num_blocks(len(extractor.positions))) for one in extractor.extract_block(block)]
    description = extractor.detector.description
    cache = extract.write_cache(
        "memory://check.zarr", rois, train.classes, split="val", level="logits", detector=description, overwrite=True
    )
    rows = paper_rows(FusionConfig(), None, Original.from_description(description))
    detections = detect_many(cache, {name: Fusion.for_cache(cache, row) for name, row in rows.items()})
    subset = load_annotations(annotations.path, cache.images["image_id"])
    return evaluate_rows(subset, detections, cache.classes, iou_types=("bbox", "segm"))[0]


def main(config: Config) -> None:
    """Prints the table."""
    model = mask_rcnn(len(read_annotations(config.data / "val.json").classes))
    load_weights(model, config.weights)
    table = evaluate(model, config.data, config.images)
    print(table.to_string(float_format="{:.1f}".format))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
