"""Extraction in half precision against the detector's forward pass in fp32, over the same images.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.precision
    python -m benchmarks.speed.precision --precision fp16 --device cuda

The case is `extract.run` from image files to the finished cache, the detector loaded beforehand. The baseline takes
decoded images and computes the same RoIs in fp32, and masks of 1,000 boxes per image where the cache keeps them. The
detector is torchvision's Mask R-CNN R50-FPN with LVIS's number of classes, class-agnostic boxes and masks, and random
weights. Rows are added to `benchmarks/results/speed/extraction.csv`; `benchmarks.precision` compares AP.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor

import extract
from benchmarks.live_subjects import NUM_CLASSES
from benchmarks.speed.extraction import ForwardPass, Job, Split, loaded, make_config, make_images
from benchmarks.speed.measure import Result, compare, result, save
from extract.config import Precision
from extract.detectors import load_detector

SIZE = (800, 1216)
IMAGES = 2
TARGET = 0.55
"""Upper bound of the time of an extraction, relative to that of the forward pass in fp32."""


@dataclass(frozen=True)
class Config:
    """What to time."""

    precision: Precision = "bf16"
    device: str = "cpu"
    splits: tuple[Split, ...] = ("train", "val")
    rounds: int = 2
    """Pairs of runs; the median of their ratios is reported."""


class SharedBoxPredictor(nn.Module):
    """(R, 1024) embeddings -> (R, K+1) logits and (R, 4 (K+1)) box deltas, the same for every class."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(1024, num_classes + 1), nn.Linear(1024, 4)

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits and deltas."""
        return self.cls_score(embedding), self.bbox_pred(embedding).repeat(1, self.cls_score.out_features)


def mask_rcnn(num_classes: int = NUM_CLASSES) -> MaskRCNN:
    """Builds the detector; its backbone has frozen batch normalisation, as torchvision's trained ones have."""
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
    model = MaskRCNN(backbone, num_classes + 1)
    model.roi_heads.box_predictor = SharedBoxPredictor(num_classes)
    model.roi_heads.mask_predictor = MaskRCNNPredictor(256, 256, 1)
    return model


def main(config: Config) -> None:
    """Times both splits and saves the results."""
    results = []
    for split in config.splits:
        with make_jobs(config, split) as (exact, reduced):
            results.append(time_extraction(config, split, exact, reduced))
    save("extraction", results)


def time_extraction(config: Config, split: Split, exact: Job, reduced: Job) -> Result:
    """Times extractions into new folders, in turn with forward passes in fp32."""
    forward, numbers = ForwardPass(exact), count()
    with loaded(reduced.detector):
        timing = compare(
            lambda: extract.run(replace(reduced.config, out=f"{reduced.config.out}{next(numbers)}")),
            lambda: [forward(batch) for batch in forward.batches()],
            config.rounds,
        )
    masks = " with masks" * (split == "val")
    case = f"extraction in {config.precision}, R50-FPN {SIZE[0]} × {SIZE[1]} {split}{masks}, {IMAGES} images"
    threads = torch.get_num_threads()
    where = config.device if config.device != "cpu" else f"{threads} thread{'s' * (threads > 1)}"
    return result(case, f"forward pass alone in fp32, {where}", timing, "at_most", TARGET)


@contextmanager
def make_jobs(config: Config, split: Split) -> Iterator[tuple[Job, Job]]:
    """Yields the extraction in fp32 and in half precision, of random images with some objects each."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        torch.save(mask_rcnn().state_dict(), folder / "weights.pth")
        options = make_config(folder, make_images(folder, IMAGES, SIZE), split, folder, 1000)
        builder, weights = "torchvision:benchmarks.speed.precision:mask_rcnn", folder / "weights.pth"
        options = replace(options, detector=builder, weights=weights, device=config.device)
        configs = options, replace(options, precision=config.precision)
        exact, reduced = (Job(one, load_detector(one), folder) for one in configs)
        yield exact, reduced


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Config, description=__doc__))
