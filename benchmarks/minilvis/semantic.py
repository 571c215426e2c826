"""Draw what the semantic branch of a Hybrid Task Cascade learns from: the group of every pixel.

    python -m benchmarks.minilvis.semantic                      # data/minilvis/train_semantic/*.png

Mini-LVIS has no annotation of stuff as COCO has, but its classes fall into groups that look alike (faces, fruit,
vehicles). An 8-bit picture has 0 where nothing is annotated, and where an object is, its class's group in the order of
`classes.GROUPS`, from 1 on. All of it comes from the annotation file, by way of the classes' `synset`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

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
    """Write one picture per image of the split; returns their folder, at once where it is there already."""
    folder = config.data / f"{config.split}_semantic"
    if folder.is_dir():
        return folder
    document = json.loads((config.data / f"{config.split}.json").read_text())
    values = group_values(document["categories"])
    pictures = {one["id"]: np.zeros((one["height"], one["width"]), np.uint8) for one in document["images"]}
    for one in document["annotations"]:
        pictures[one["image_id"]][rle.decode(one["segmentation"]) > 0] = values[one["category_id"]]
    unfinished = folder.with_suffix(".tmp")
    unfinished.mkdir(exist_ok=True)
    for one in document["images"]:
        Image.fromarray(pictures[one["id"]]).save((unfinished / one["file_name"]).with_suffix(".png"))
    unfinished.rename(folder)
    return folder


def group_values(categories: list[dict]) -> dict[int, int]:
    """Category id -> 1…G, its group."""
    group = {class_code(emoji): number for number, every in enumerate(GROUPS.values(), start=1) for emoji in every}
    return {one["id"]: group[one["synset"]] for one in categories}


if __name__ == "__main__":
    import tyro

    print(draw(tyro.cli(Config, description=__doc__)))
