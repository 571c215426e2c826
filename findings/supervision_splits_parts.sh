#!/usr/bin/env bash
# supervision 0.31.2: an object of two parts becomes two objects when a dataset is exported to Pascal VOC or YOLO.
# Guess: one annotation stays one object: its box, or one polygon for both parts.
# Behaviour: each polygon of its mask becomes an object, with the box of that part alone. One occluded chair counts
#   twice.
# Seen: 1 detection with the box [0, 0, 31, 31]; VOC 2 objects: 1-11, 21-31; YOLO 2 lines; COCO 1 annotation
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile supervision==0.31.2 opencv-python-headless==4.12.0.88
cd "$work"
venv/bin/python - <<'EOF' 2>log || { cat log; exit 1; }
import json
from pathlib import Path

import numpy as np
import supervision as sv
from PIL import Image

Image.new("RGB", (100, 80)).save("a.png")
mask = np.zeros((1, 80, 100), bool)
mask[0, 0:11, 0:11] = mask[0, 20:31, 20:31] = True
chair = sv.Detections(xyxy=np.array([[0.0, 0, 31, 31]]), mask=mask, class_id=np.array([0]))
dataset = sv.DetectionDataset(classes=["chair"], images=["a.png"], annotations={"a.png": chair})
dataset.as_pascal_voc(annotations_directory_path="voc")
dataset.as_yolo(annotations_directory_path="yolo", data_yaml_path="data.yaml")
dataset.as_coco(annotations_path="coco.json")
voc = Path("voc/a.xml").read_text()
lefts = [int(part.split("<")[0]) for part in voc.split("<xmin>")[1:]]
lines = Path("yolo/a.txt").read_text().split("\n")
lines = [line for line in lines if line]
coco = json.loads(Path("coco.json").read_text())["annotations"]
print("objects: VOC", voc.count("<object>"), "with xmin", lefts, "YOLO", len(lines), "COCO", len(coco))
assert voc.count("<object>") == 2 and sorted(lefts) == [1, 21]
assert len(lines) == 2 and len(coco) == 1
EOF
