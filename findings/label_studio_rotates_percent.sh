#!/usr/bin/env bash
# label-studio-sdk 2.1.2: the COCO export of a rotated rectangle is wrong unless the image is square.
# Guess: a rectangle of 40 x 30 pixels that is turned by 90 degrees gets a bounding box of 30 x 40 pixels.
# Behaviour: the corners are turned while they are still percent of width and height, and scaled to pixels afterwards.
#   In an image twice as wide as high the box comes out as 60 x 20; its area is right by chance.
# Seen: image 100 x 100: 15 x 20 pixels for 20 x 15 (right); image 200 x 100: 60 x 20 pixels for 40 x 30
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile label-studio-sdk==2.1.2
cd "$work"
venv/bin/python - <<'EOF' 2>log || { cat log; exit 1; }
import json
from pathlib import Path

from label_studio_sdk.converter import Converter

CONFIG = """<View><Image name="image" value="$image"/>
<RectangleLabels name="label" toName="image"><Label value="cat"/></RectangleLabels></View>"""


def exported_size(image_size: tuple[int, int], box_size: tuple[float, float]) -> list[float]:
    """Width and height in pixels of the exported bounding box of a box that is turned by 90 degrees."""
    value = {"x": 50, "y": 50, "width": box_size[0] / image_size[0] * 100, "height": box_size[1] / image_size[1] * 100,
             "rotation": 90, "rectanglelabels": ["cat"]}
    region = {"type": "rectanglelabels", "from_name": "label", "to_name": "image", "value": value,
              "original_width": image_size[0], "original_height": image_size[1]}
    annotation = {"id": 1, "completed_by": 1, "result": [region]}
    Path("task.json").write_text(json.dumps([{"id": 1, "data": {"image": "a.png"}, "annotations": [annotation]}]))
    Converter(CONFIG, ".", download_resources=False).convert("task.json", "out", "COCO", is_dir=False)
    return [round(v, 6) for v in json.loads(Path("out/result.json").read_text())["annotations"][0]["bbox"][2:]]


square, wide = exported_size((100, 100), (20, 15)), exported_size((200, 100), (40, 30))
print("square image, 20 x 15 turned:", square, "wide image, 40 x 30 turned:", wide)
assert square == [15, 20]
assert wide == [60, 20]
EOF
