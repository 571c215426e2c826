"""`fuse.evaluate` against the same call with the official `lvis` package as its engine, figures equal.

    python -m benchmarks.speed.evaluation

1,000 images of LVIS v0.5 val with their real classes, 300 detections each: half of them on objects, some misnamed, the
rest anywhere; by boxes, and by masks.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import tyro

from benchmarks.speed.inputs import SIZE, lvis_classes, lvis_pairs
from benchmarks.speed.measure import Pair, keep, peak_memory, row, seconds
from fuse.detections import Detections
from fuse.evaluation.metrics import per_class_ap
from fuse.ops.masks import encode_masks

DETECTIONS = 300
NEGATIVES = 20  # classes of an image that are known to be absent
ROUNDS = 3


def main(images: int = 1000) -> None:
    """Times both on boxes and on masks."""
    classes = lvis_classes()
    rows = []
    truth = annotations(classes, images)
    for iou_type in ("bbox", "segm"):
        found = detections(truth, classes, masks=iou_type == "segm")

        def evaluated(engine: str, found=found, iou_type=iou_type) -> pd.DataFrame:
            return per_class_ap(truth, found, classes, iou_type=iou_type, engine=engine)

        pair = _compare(evaluated)
        what = f"evaluate, {images:,} images × {DETECTIONS} detections, {'boxes' if iou_type == 'bbox' else 'masks'}"
        rows.append(row(what, "the lvis package", pair, at_least=30))
    keep("evaluation", rows)


def annotations(classes: pd.DataFrame, images: int, seed: int = 0) -> dict:
    """LVIS annotations of the first images of val: its classes, as many objects of each as train has on average."""
    rng = np.random.default_rng(seed)
    owners, positions, image_ids = lvis_pairs("val")
    per_image = (classes["instance_count"] / classes["image_count"].clip(lower=1)).to_numpy()
    ids = classes["category_id"].to_numpy()
    content = {"images": [], "annotations": [], "categories": classes.rename(columns={"category_id": "id"})}
    for position, image_id in enumerate(image_ids[:images].tolist()):
        present = owners[positions == position]
        absent = np.setdiff1d(rng.choice(len(ids), NEGATIVES, replace=False), present)
        content["images"].append(
            {
                "id": image_id,
                "height": SIZE[0],
                "width": SIZE[1],
                "neg_category_ids": ids[absent].tolist(),
                "not_exhaustive_category_ids": ids[present[rng.random(len(present)) < 0.1]].tolist(),
            }
        )
        labels = np.repeat(present, 1 + rng.poisson(per_image[present] - 1))
        for label, (x1, y1, x2, y2) in zip(labels, _boxes(rng, len(labels)).tolist(), strict=True):
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": int(ids[label]),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                }
            )
    content["categories"] = content["categories"][["id", "name", "frequency"]].to_dict("records")
    return content


def detections(truth: dict, classes: pd.DataFrame, masks: bool, seed: int = 1) -> Detections:
    """300 an image: half of them around its objects, a third of those misnamed; the rest of any class anywhere."""
    rng = np.random.default_rng(seed)
    ids = classes["category_id"].to_numpy()
    objects = pd.DataFrame(truth["annotations"])[["image_id", "category_id", "bbox"]]
    by_image = dict(list(objects.groupby("image_id")))
    parts = []
    for image in truth["images"]:
        category = rng.choice(ids, DETECTIONS)
        box = _boxes(rng, DETECTIONS)
        there = by_image.get(image["id"])
        if there is not None:
            on = rng.integers(len(there), size=DETECTIONS // 2)
            xywh = np.array(there["bbox"].tolist())[on]
            size = np.tile(xywh[:, 2:], 2)
            box[: len(on)] = (
                np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1) + rng.normal(0, 0.1, size.shape) * size
            )
            named = rng.random(len(on)) < 2 / 3
            category[: len(on)][named] = there["category_id"].to_numpy()[on[named]]
        parts.append((np.full(DETECTIONS, image["id"]), category, rng.random(DETECTIONS) ** 3, _sorted(box)))
    image_id, category_id, score, box = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    box = box.astype(np.float32)
    rle = encode_masks(np.full((len(box), 28, 28), 254, np.uint8), box, *SIZE) if masks else None
    return Detections(image_id, category_id.astype(np.int64), score.astype(np.float32), box, rle)


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    height, width = SIZE
    corner = rng.random((count, 2)) * (width - 40, height - 40)
    size = np.exp(rng.uniform(np.log(8), np.log(300), (count, 2)))
    return np.concatenate([corner, np.minimum(corner + size, (width, height))], 1).round(2)


def _sorted(box: np.ndarray) -> np.ndarray:
    return np.concatenate([np.minimum(box[:, :2], box[:, 2:]), np.maximum(box[:, :2], box[:, 2:])], 1)


def _compare(evaluated) -> Pair:
    """The official package takes a minute, so it runs once, and ours before and after it."""
    tables, times = {}, {}

    def run(engine: str) -> None:
        times.setdefault(engine, []).append(seconds(lambda: tables.__setitem__(engine, evaluated(engine))))

    memory = {}
    for engine in ("hotcoco", *["hotcoco"] * ROUNDS, "lvis", *["hotcoco"] * ROUNDS):
        memory[engine] = peak_memory(lambda: run(engine))  # noqa: B023
    pd.testing.assert_frame_equal(tables["hotcoco"], tables["lvis"], rtol=0, atol=1e-9)
    ours, other = float(np.median(times["hotcoco"][1:])), times["lvis"][0]
    return Pair(ours, other, other / ours, memory["hotcoco"], memory["lvis"])


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
