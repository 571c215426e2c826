"""Draws segmentation maps to train the semantic branch of a Hybrid Task Cascade: the group of every pixel.

    python -m benchmarks.minilvis.semantic                      # data/minilvis/train_semantic/*.png

COCO has annotations of stuff for this; Mini-LVIS has none, but its classes form groups that look alike (faces, fruit,
vehicles). A map has 8 bits per pixel: 0 for background, otherwise the number of the class's group in
`classes.GROUPS`, from 1. Groups are found by the `synset` of the classes in the annotation file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hotcoco import mask as rle
from PIL import Image

from benchmarks.minilvis.classes import GROUPS, class_code


@dataclass(frozen=True)
class Config:
    """What to draw."""

    data: Path = Path("data/minilvis")
    split: str = "train"


def draw(config: Config) -> Path:
    """Writes one map per image of the split, unless they exist; returns their folder."""
    folder = config.data / f"{config.split}_semantic"
    if folder.is_dir():
        return folder
    document = json.loads((config.data / f"{config.split}.json").read_text())
    values = group_values(document["categories"])
    maps = {one["id"]: np.zeros((one["height"], one["width"]), np.uint8) for one in document["images"]}
    for one in document["annotations"]:
        maps[one["image_id"]][rle.decode(one["segmentation"]) > 0] = values[one["category_id"]]
    unfinished = folder.with_suffix(".tmp")
    unfinished.mkdir(exist_ok=True)
    for one in document["images"]:
        Image.fromarray(maps[one["id"]]).save((unfinished / one["file_name"]).with_suffix(".png"))
    unfinished.rename(folder)
    return folder


def group_values(categories: list[dict[str, Any]]) -> dict[int, int]:
    """Returns the group of each category: category id -> 1…G."""
    group = {class_code(emoji): number for number, every in enumerate(GROUPS.values(), start=1) for emoji in every}
    return {one["id"]: group[one["synset"]] for one in categories}


if __name__ == "__main__":
    import tyro

    print(draw(tyro.cli(Config, description=__doc__)))
