"""Detections of this library, read by tools that show and edit them: which of them each reads to the same numbers.

    pip install fiftyone supervision datumaro               # those that are not installed are left out
    python -m benchmarks.crossing.tools

Writes the detections of the first `IMAGES` images of Mini-LVIS val as docs/guide.md says: as results, which FiftyOne
reads, and as a COCO file whose annotations they are, which supervision and CVAT read; CVAT's importer of COCO files is
datumaro's. Writes `benchmarks/results/crossing_tools.csv`: how many detections have the same image, class, box to
`PIXELS`, score and mask.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from hotcoco import mask as rle

from benchmarks.crossing.inputs import ANNOTATIONS, Inputs, make_inputs
from benchmarks.crossing.registry import RESULTS, installed_version, quiet
from benchmarks.provenance import provenance
from benchmarks.speed.measure import merge_into

FILE = RESULTS / "crossing_tools.csv"
IMAGES, DETECTIONS = 5, 200
PIXELS = 0.01
IMAGE_FOLDER = ANNOTATIONS.parent / "val"
RESULTS_FILE, DATASET_FILE = "results.json", "annotations/instances_val.json"


class Read(NamedTuple):
    """One detection as a tool has it: file name, class, xyxy box (4,), score or None, (H, W) bool mask or None."""

    image: str
    label: str
    box: np.ndarray
    score: float | None
    mask: np.ndarray | None


def main() -> None:
    """Runs every tool that is installed, and saves its row."""
    inputs = first_detections(make_inputs(images=IMAGES)[0])
    expected = list(read_own(inputs))
    rows = []
    for package, read in TOOLS.items():
        if not (number := installed_version(package)):
            continue
        with tempfile.TemporaryDirectory() as folder, quiet():
            write_files(Path(folder), inputs)
            found = list(read(Path(folder), inputs))
        rows.append({"tool": package, "version": number, **compare(found, expected)})
    table = merge_into(FILE, pd.DataFrame(rows).assign(**provenance()), ["tool"])
    table.to_csv(FILE, index=False)
    print(table.to_string(index=False))


def first_detections(inputs: Inputs) -> Inputs:
    """Returns the inputs with the first `DETECTIONS` detections."""
    return replace(inputs, detections=inputs.detections.take(slice(DETECTIONS)))


def write_files(folder: Path, inputs: Inputs) -> None:
    """Writes both files as docs/guide.md says."""
    inputs.detections.to_json(folder / RESULTS_FILE)
    content = json.loads(ANNOTATIONS.read_text())
    kept = {image["id"] for image in inputs.content["images"]}
    content["images"] = [image for image in content["images"] if image["id"] in kept]
    results = json.loads((folder / RESULTS_FILE).read_text())
    content["annotations"] = [
        {**result, "id": i, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}
        for i, result in enumerate(results, 1)
    ]
    (folder / DATASET_FILE).parent.mkdir()
    (folder / "images").symlink_to(IMAGE_FOLDER.resolve())  # datumaro wants it beside the annotations
    (folder / DATASET_FILE).write_text(json.dumps(content))


def compare(found: list[Read], expected: list[Read]) -> dict[str, int]:
    """Counts the expected detections that a tool has, and those whose score and mask it has too."""
    boxes = scores = masks = 0
    for one in expected:
        same = [
            other
            for other in found
            if (other.image, other.label) == (one.image, one.label) and np.abs(other.box - one.box).max() <= PIXELS
        ]
        boxes += bool(same)
        scores += any(other.score is not None and abs(other.score - one.score) < 1e-6 for other in same)  # type: ignore[operator]
        masks += any(other.mask is not None and np.array_equal(other.mask, one.mask) for other in same)
    return {"detections": len(expected), "read": len(found), "boxes": boxes, "scores": scores, "masks": masks}


def read_own(inputs: Inputs) -> Iterator[Read]:
    """Yields the detections as they are."""
    names, labels = names_of(inputs)
    found, shapes = inputs.detections, inputs.detections.rles
    assert shapes is not None
    for i in range(len(found)):
        mask = rle.decode({**shapes[i], "counts": shapes[i]["counts"].encode()}).astype(bool)
        score = float(found.scores[i])
        yield Read(names[found.image_ids[i]], labels[found.category_ids[i]], found.boxes[i], score, mask)


def names_of(inputs: Inputs) -> tuple[dict[int, str], dict[int, str]]:
    """Returns the images' file names and the classes' names by id."""
    content = inputs.content
    return tuple({one["id"]: one[key] for one in content[table]} for table, key in NAMES)  # type: ignore[return-value]


NAMES = (("images", "file_name"), ("categories", "name"))


def supervision(folder: Path, inputs: Inputs) -> Iterator[Read]:
    """supervision's `DetectionDataset.from_coco`."""
    import supervision as sv

    dataset = sv.DetectionDataset.from_coco(str(IMAGE_FOLDER), str(folder / DATASET_FILE), force_masks=True)
    for path, found in dataset.annotations.items():
        for i in range(len(found)):
            score = None if found.confidence is None else float(found.confidence[i])
            mask = None if found.mask is None else np.asarray(found.mask[i], bool)
            yield Read(Path(path).name, dataset.classes[found.class_id[i]], found.xyxy[i], score, mask)


def datumaro(folder: Path, inputs: Inputs) -> Iterator[Read]:
    """datumaro's importer of COCO instances, which makes a box and a mask of each, of one group."""
    import datumaro as dm

    dataset = dm.Dataset.import_from(str(folder), "coco_instances")
    labels = dataset.categories()[dm.AnnotationType.label]
    for item in dataset:
        masks = {one.group: one.image.astype(bool) for one in item.annotations if one.type == dm.AnnotationType.mask}
        for one in item.annotations:
            if one.type != dm.AnnotationType.bbox:
                continue
            x, y, w, h = one.get_bbox()
            name, box = f"{item.id}{Path(item.media.path).suffix}", np.array([x, y, x + w, y + h])
            yield Read(name, labels[one.label].name, box, one.attributes.get("score"), masks.get(one.group))


def fiftyone(folder: Path, inputs: Inputs) -> Iterator[Read]:
    """FiftyOne's objects, which `add_coco_labels` makes of results; a dataset of it needs its database."""
    from fiftyone.utils.coco import COCOObject

    _, labels = names_of(inputs)
    images = {image["id"]: image for image in inputs.content["images"]}
    for record in json.loads((folder / RESULTS_FILE).read_text()):
        image = images[record["image_id"]]
        size = np.array([image["width"], image["height"]])
        one: Any = COCOObject.from_anno_dict(record).to_detection(tuple(size), labels, load_segmentation=True)
        corner, edges = np.array(one.bounding_box[:2]) * size, np.array(one.bounding_box[2:]) * size
        mask = np.zeros(size[::-1], bool)
        left, top = np.round(corner).astype(int)
        mask[top : top + len(one.mask), left : left + one.mask.shape[1]] = one.mask
        yield Read(image["file_name"], one.label, np.concatenate([corner, corner + edges]), one.confidence, mask)


TOOLS: dict[str, Callable[[Path, Inputs], Iterator[Read]]] = {
    "fiftyone": fiftyone,
    "supervision": supervision,
    "datumaro": datumaro,
}

if __name__ == "__main__":
    main()
