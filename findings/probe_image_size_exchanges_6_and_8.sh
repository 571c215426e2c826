#!/usr/bin/env bash
# probe-image-size 7.5.0: of an AVIF, orientation 6 is reported as 8, and 8 as 6.
# Guess: the number that EXIF would have, as the same function reports for JPEG, for all eight.
# Behaviour: AVIF stores a rotation counter-clockwise; a quarter turn is taken the wrong way, a mirrored one the right
#   way. A portrait photo that is turned by this number stands on its head; width and height fit, so nothing is noticed.
# Seen: written by Pillow 13.0.0 with 1 ... 8: JPEG 1 2 3 4 5 6 7 8, AVIF undefined 2 3 4 5 8 7 6; the rotation in the
#   file of 6 is 3 (270 degrees counter-clockwise, so 90 clockwise), and Pillow reads 6
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile pillow==13.0.0
cd "$work"
venv/bin/python - <<'EOF'
from pathlib import Path

from PIL import Image

for orientation in range(1, 9):
    for suffix in ("jpg", "avif"):
        exif = Image.Exif()
        exif[0x112] = orientation
        Image.new("RGB", (64, 32)).save(f"{orientation}.{suffix}", exif=exif)
        with Image.open(f"{orientation}.{suffix}") as image:
            assert image.getexif().get(0x112, 1) == orientation
content = Path("6.avif").read_bytes()
assert content[content.index(b"irot") + 4] == 3
EOF
npm install --silent --no-audit --no-fund --prefix "$work" probe-image-size@7.5.0 >/dev/null
cat >probe.mjs <<'EOF'
import assert from "node:assert";
import { readFileSync } from "node:fs";
import probe from "probe-image-size";

const all = [1, 2, 3, 4, 5, 6, 7, 8];
const found = (suffix) => all.map((i) => probe.sync(readFileSync(`${i}.${suffix}`)).orientation);
console.log("JPEG", ...found("jpg"));
console.log("AVIF", ...found("avif"));
assert.deepEqual(found("jpg"), all);
assert.deepEqual(found("avif"), [undefined, 2, 3, 4, 5, 8, 7, 6]);
EOF
node probe.mjs
