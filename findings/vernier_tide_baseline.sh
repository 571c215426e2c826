#!/usr/bin/env bash
# vernier 0.5.4: TIDE's error decomposition is of AP averaged over IoU 0.5 to 0.95, not of AP at its threshold.
# Guess: with the foreground threshold t_f = 0.5, the baseline is AP50, as in the TIDE paper and in hotcoco 1.3.0, so
#   that the parts of two tools can be compared.
# Behaviour: t_f decides which detections are errors, but baseline and gains are averaged over ten IoU thresholds. A
#   detection with IoU 0.71 is no error of any kind, and yet half of the AP is missing and nothing accounts for it.
# Seen: one object, one detection with IoU 0.71: hotcoco ap_base 1.0, gains 0; vernier baseline_map 0.5, gains 0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile vernier==0.5.4 hotcoco==1.3.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import json

import hotcoco
from vernier.instance import error_decomposition

truth = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 200, "height": 200}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10.0, 10, 100, 70], "area": 7000.0,
                     "iscrowd": 0}],
}
found = [{"image_id": 1, "category_id": 1, "bbox": [10.0, 10, 71, 70], "score": 0.9}]
coco = hotcoco.COCO(truth)
evaluator = hotcoco.COCOeval(coco, coco.load_res(found), "bbox")
evaluator.evaluate()
evaluator.accumulate()
one = evaluator.tide_errors(pos_thr=0.5)
other = error_decomposition(json.dumps(truth).encode(), json.dumps(found).encode(), t_f=0.5)
print("hotcoco", one["ap_base"], one["delta_ap"])
print("vernier", other.baseline_map, other.delta, other.config)
assert abs(one["ap_base"] - 1) < 1e-9 and not any(one["delta_ap"].values())
assert abs(other.baseline_map - 0.5) < 1e-9 and not any(other.delta.values())
EOF
