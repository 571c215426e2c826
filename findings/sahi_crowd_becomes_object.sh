#!/usr/bin/env bash
# sahi 0.12.8: slicing a COCO file turns crowd regions into ordinary objects.
# Guess: slice_coco keeps `iscrowd`, so that the sliced file is evaluated as the whole one; a mask of run lengths is
#   sliced too, or refused.
# Behaviour: `iscrowd` is not read: every annotation comes out with 0, be its shape a polygon or run lengths. Run
#   lengths are "skipped" by one warning, yet the annotation stays: its box becomes its mask.
# Seen: in iscrowd 1, 1; out iscrowd 0, 0; areas 200 and 400 for masks of 200 and 40 pixels
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile sahi==0.12.8
cd "$work"
venv/bin/python - <<'EOF' 2>log || { cat log; exit 1; }
import json
from pathlib import Path

from PIL import Image
from sahi.slicing import slice_coco

Path("images").mkdir()
Image.new("RGB", (100, 80)).save("images/a.png")
triangle = [[10, 10, 30, 10, 30, 30]]  # 200 pixels in a box of 20 x 20
stripe = {"size": [80, 100], "counts": [3200, 20, 60, 20, 4700]}  # 40 pixels, and a wider box around the crowd
Path("a.json").write_text(json.dumps({
    "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 80}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 1, "bbox": [10, 10, 20, 20], "area": 200,
         "segmentation": triangle},
        {"id": 2, "image_id": 1, "category_id": 1, "iscrowd": 1, "bbox": [40, 0, 20, 20], "area": 40,
         "segmentation": stripe},
    ],
}))
sliced, _ = slice_coco("a.json", "images", "sliced", output_dir="out", slice_height=80, slice_width=100, verbose=False)
found = [(a["iscrowd"], a["area"]) for a in sliced["annotations"]]
print("iscrowd and area after slicing:", found)
assert [crowd for crowd, _ in found] == [0, 0]
assert found[1][1] == 400
EOF
