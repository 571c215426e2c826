#!/usr/bin/env bash
# simple-cocotools 1.0.2: the "mAP" of its CocoEvaluator is the precision of all detections; scores are not used.
# Guess: mAP is an average precision over recall, as in pycocotools 2.0.11, so that ranking true boxes first pays.
# Behaviour: per class and IoU threshold it is TP / (TP + FP). Reversing all scores changes nothing.
# Seen: one true box above three false ones: pycocotools AP 1.0, reversed 0.25; simple-cocotools mAP 0.25, reversed
#   0.25
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile simple-cocotools==1.0.2 pycocotools==2.0.11 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import contextlib
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from simple_cocotools import CocoEvaluator

truth = np.array([[10.0, 10, 50, 50]])
boxes = np.array([[10.0, 10, 50, 50], [100, 10, 140, 50], [100, 100, 140, 140], [10, 100, 50, 140]])


def simple(scores: np.ndarray) -> float:
    evaluator = CocoEvaluator()
    evaluator.update([{"boxes": boxes, "labels": np.ones(4, int), "scores": scores}],
                     [{"boxes": truth, "labels": np.ones(1, int)}])
    return float(evaluator.accumulate()["box"]["mAP"])


def official(scores: np.ndarray) -> float:
    def records(corners: np.ndarray) -> list[dict]:
        return [{"id": i + 1, "image_id": 1, "category_id": 1, "bbox": [x, y, x2 - x, y2 - y],
                 "area": (x2 - x) * (y2 - y), "iscrowd": 0} for i, (x, y, x2, y2) in enumerate(corners.tolist())]
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {"images": [{"id": 1, "width": 200, "height": 200}], "categories": [{"id": 1, "name": "cat"}],
                        "annotations": records(truth)}
        coco.createIndex()
        found = [{**record, "score": float(score)} for record, score in zip(records(boxes), scores)]
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.evaluate(), evaluation.accumulate(), evaluation.summarize()
    return float(evaluation.stats[0])


scores = np.array([0.9, 0.3, 0.2, 0.1])
values = [official(scores), official(1 - scores), simple(scores), simple(1 - scores)]
print("pycocotools", values[:2], "simple-cocotools", values[2:])
assert np.allclose(values, [1, 0.25, 0.25, 0.25], atol=1e-6)
EOF
