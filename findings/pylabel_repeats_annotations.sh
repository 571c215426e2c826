#!/usr/bin/env bash
# pylabel 0.1.55: a COCO file with an image without annotations comes out with annotations that are there twice.
# Guess: import and export keep the number of annotations; the empty image stays an image.
# Behaviour: for each image without annotations, the export writes the annotation before it once more, under the same
#   id and for the same image, so that evaluation counts one object as two.
# Seen: in: annotation ids [1], 3 images; out: annotation ids [0, 0, 0], all of image 1, 3 images
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile pylabel==0.1.55 pandas==2.3.3 numpy==2.4.6
cd "$work"
venv/bin/python - <<'EOF' 2>log || { cat log; exit 1; }
import json
from pathlib import Path

from pylabel import importer

Path("in.json").write_text(json.dumps({
    "images": [{"id": i, "file_name": f"{i}.jpg", "width": 100, "height": 80} for i in (1, 2, 3)],
    "categories": [{"id": 1, "name": "cat", "supercategory": "animal"}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0,
                     "segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]]}],
}))
importer.ImportCoco("in.json", path_to_images=".", name="x").export.ExportToCoco(output_path="out.json")
out = json.loads(Path("out.json").read_text())
found = [(a["id"], a["image_id"]) for a in out["annotations"]]
print("annotation and image ids:", found, "images:", len(out["images"]))
assert len(out["images"]) == 3
assert found == [(0, 1)] * 3
EOF
