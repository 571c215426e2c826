#!/usr/bin/env bash
# torchvision 0.29.1: wrap_dataset_for_transforms_v2 of CocoDetection gives images without objects no boxes and no labels.
# Guess: they have the keys that target_keys asks for, with zero rows, which torchvision's detectors train on.
# Behaviour: their target is {"image_id": ...} alone, whatever target_keys asks for, so that target["boxes"] raises
#   KeyError at the first image without annotations, of which COCO's train2017 has a thousand.
# Seen: with an object: boxes labels; without: image_id
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torchvision==0.29.1 torch==2.14.1 pycocotools==2.0.11 numpy==2.4.6
cd "$work"
venv/bin/python - <<'EOF'
import contextlib
import io
import json
from pathlib import Path

from PIL import Image
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2

Path("images").mkdir()
for number in (1, 2):
    Image.new("RGB", (20, 20)).save(f"images/{number}.png")
content = {
    "images": [{"id": n, "file_name": f"{n}.png", "width": 20, "height": 20} for n in (1, 2)],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0,
                     "segmentation": [[1, 1, 6, 1, 6, 6, 1, 6]]}],
}
Path("annotations.json").write_text(json.dumps(content))
with contextlib.redirect_stdout(io.StringIO()):
    dataset = CocoDetection("images", "annotations.json")
wrapped = wrap_dataset_for_transforms_v2(dataset, target_keys=["boxes", "labels"])
keys = [sorted(wrapped[i][1]) for i in range(2)]
print("with an object:", *keys[0])
print("without:", *keys[1])
assert keys == [["boxes", "labels"], ["image_id"]]
EOF
