"""A tiny Mini-LVIS and a detector with random weights, made once for all tests that need real input."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from extract import Config

CLASSES = 12


@dataclass(frozen=True)
class Tiny:
    """Where the tiny data set and the detector's weights lie."""

    data: Path
    weights: Path

    def config(self, split: str, out: Path, **changes) -> Config:
        """What extracts a split with the random detector."""
        config = Config(
            detector="torchvision:benchmarks.minilvis.detector:mask_rcnn",
            weights=self.weights,
            detector_options=(f"num_classes={CLASSES}",),
            annotations=self.data / f"{split}.json",
            train_annotations=self.data / "train.json",
            images=self.data / split,
            out=str(out),
            split=split,
            proposals=60,
            device="cpu",
        )
        return replace(config, **changes)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    """12 classes, 30 training and 12 validation images of 112 pixels."""
    import torch
    from safetensors.torch import save_file

    from benchmarks.minilvis import make
    from benchmarks.minilvis.detector import mask_rcnn

    folder = tmp_path_factory.mktemp("tiny")
    make.make(make.Config(out=folder, classes=CLASSES, train_images=30, eval_images=12, size=112, workers=1))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(mask_rcnn(CLASSES).state_dict(), folder / "random.safetensors")
    return Tiny(folder, folder / "random.safetensors")
