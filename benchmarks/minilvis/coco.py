"""Writes Mini-LVIS's annotations in COCO's format, as an exhaustive dataset.

    python -m benchmarks.minilvis.coco data/minilvis

Mini-LVIS annotates every object that it draws, so every class is annotated in every image: without LVIS's fields, the
same annotations are an exhaustive dataset. Writes FOLDER/coco/{train,val,test}.json, of the images in
FOLDER/{train,val,test}.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.minilvis.plan import SPLITS

IMAGE_FIELDS = ("id", "file_name", "height", "width")
CATEGORY_FIELDS = ("id", "name")


def convert(folder: Path) -> Path:
    """Converts all splits and returns the folder of the new files."""
    out = Path(folder) / "coco"
    out.mkdir(exist_ok=True)
    for split in SPLITS:
        content = json.loads((Path(folder) / f"{split}.json").read_text())
        (out / f"{split}.json").write_text(json.dumps(as_coco(content)))
    return out


def as_coco(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of an annotation file of Mini-LVIS with COCO's fields only."""
    return {
        "info": content["info"],
        "licenses": [],
        "images": [{name: image[name] for name in IMAGE_FIELDS} for image in content["images"]],
        "annotations": [{**annotation, "iscrowd": 0} for annotation in content["annotations"]],
        "categories": [{name: category[name] for name in CATEGORY_FIELDS} for category in content["categories"]],
    }


if __name__ == "__main__":
    print(convert(Path(sys.argv[1])))
