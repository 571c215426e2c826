#!/usr/bin/env bash
# map-boxes 1.0.6: false positives in images without an object do not count.
# Guess: a detection in an empty image is a false positive, as for pycocotools 2.0.11: that is what most images of a
#   detector in production are.
# Behaviour: only images that the annotations mention are visited. A detector that fires in every empty image, with its
#   highest scores, has AP 1.
# Seen: two objects found, a better scored false positive in another image: pycocotools AP50 0.667, map-boxes 1.0; in
#   the same image: 0.667 in both
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile map-boxes==1.0.6 pycocotools==2.0.11 numpy==2.4.6 pandas==3.1.1
"$work/venv/bin/python" - <<'EOF'
import contextlib
import io

from map_boxes import mean_average_precision_for_boxes
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

objects = [(1, 10, 10, 60, 60), (1, 100, 100, 150, 150)]


def figures(image):
    """AP50 of pycocotools and of map-boxes, with a false positive in this image."""
    found = [(1, 0.8, *objects[0][1:]), (1, 0.7, *objects[1][1:]), (image, 0.9, 10, 100, 60, 150)]
    rows = [[i, "cat", x1, x2, y1, y2] for i, x1, y1, x2, y2 in objects]
    detections = [[i, "cat", score, x1, x2, y1, y2] for i, score, x1, y1, x2, y2 in found]
    other, _ = mean_average_precision_for_boxes(rows, detections, iou_threshold=0.5, verbose=False)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": 1}, {"id": 2}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [{"id": k, "image_id": i, "category_id": 1, "iscrowd": 0, "area": 2500,
                             "bbox": [x1, y1, x2 - x1, y2 - y1]} for k, (i, x1, y1, x2, y2) in enumerate(objects, 1)],
        }
        coco.createIndex()
        results = [{"image_id": i, "category_id": 1, "score": score, "bbox": [x1, y1, x2 - x1, y2 - y1]}
                   for i, score, x1, y1, x2, y2 in found]
        evaluator = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return round(float(evaluator.stats[1]), 3), round(float(other), 3)


same, empty = figures(1), figures(2)
print("same image: pycocotools, map-boxes", same, "empty image:", empty)
assert same == (0.667, 0.667) and empty == (0.667, 1.0)
EOF
