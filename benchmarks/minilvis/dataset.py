"""Mini-LVIS in memory, in the form that torchvision's detectors take."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hotcoco import mask as rle
from PIL import Image


@dataclass(frozen=True)
class Split:
    """One split, N images of K classes.

    Attributes:
        annotations: content of the annotation file.
        category_ids: (K,) int64, ascending; class index -> category id.
        images: (N, H, W, 3) uint8 RGB.
        records: annotation records of each image.
    """

    annotations: dict[str, Any]
    category_ids: np.ndarray
    images: np.ndarray
    records: list[list[dict[str, Any]]]

    def __len__(self) -> int:
        return len(self.images)

    def classes_of(self, index: int) -> np.ndarray:
        """Returns the class index 0…K-1 of each object of an image, (n,) int64."""
        return np.searchsorted(self.category_ids, [one["category_id"] for one in self.records[index]])

    def tensor(self, index: int, flip: bool = False) -> torch.Tensor:
        """Returns an image as (3, H, W) float32 from 0 to 1."""
        pixels = self.images[index][:, ::-1] if flip else self.images[index]
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float() / 255

    def target(self, index: int, flip: bool = False) -> dict[str, torch.Tensor]:
        """Returns `boxes` (n, 4) xyxy in pixels, `labels` (n,) 1…K (0 is background) and `masks` (n, H, W) uint8."""
        records = self.records[index]
        masks = rle.decode([one["segmentation"] for one in records]).transpose(2, 0, 1)
        boxes = np.array([one["bbox"] for one in records], np.float32)
        boxes[:, 2:] += boxes[:, :2]
        if flip:
            masks, boxes[:, [0, 2]] = masks[:, :, ::-1], masks.shape[2] - boxes[:, [2, 0]]
        return {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.from_numpy(self.classes_of(index) + 1),
            "masks": torch.from_numpy(np.ascontiguousarray(masks)),
        }


def load(folder: Path, split: str) -> Split:
    """Reads FOLDER/SPLIT.json and its images. Raises FileNotFoundError if the dataset has not been made."""
    path = Path(folder) / f"{split}.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: does not exist; run python -m benchmarks.minilvis.make --out {folder}")
    annotations = json.loads(path.read_text())
    by_image: dict[int, list[dict[str, Any]]] = {one["id"]: [] for one in annotations["images"]}
    for one in annotations["annotations"]:
        by_image[one["image_id"]].append(one)
    images = np.stack(
        [np.asarray(Image.open(path.with_suffix("") / one["file_name"])) for one in annotations["images"]]
    )
    category_ids = np.array(sorted(one["id"] for one in annotations["categories"]))
    return Split(annotations, category_ids, images, [by_image[one["id"]] for one in annotations["images"]])
