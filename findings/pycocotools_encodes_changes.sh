#!/usr/bin/env bash
# pycocotools 2.0.11: mask.encode counts where neighbours differ, not where a pixel is set.
# Guess: any value but 0 is foreground, as in NumPy, and in hotcoco 1.3.0, which takes the same arguments.
# Behaviour: a run ends wherever the value changes, and runs are background and foreground in turn. A mask with soft
#   edges (resized, or read from an anti-aliased PNG) loses its inside: grey is foreground, and the white behind it is
#   not.
# Seen: column 0 0 128 255 255 128 0 0: pycocotools 0 0 1 0 0 1 0 0, area 2; hotcoco 0 0 1 1 1 1 0 0, area 4
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile pycocotools==2.0.11 hotcoco==1.3.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import hotcoco.mask
import numpy as np
import pycocotools.mask

soft = np.asfortranarray(np.array([[0, 0, 128, 255, 255, 128, 0, 0]], np.uint8).T)
found = {}
for name, module in (("pycocotools", pycocotools.mask), ("hotcoco", hotcoco.mask)):
    found[name] = module.decode(module.encode(soft)).ravel().tolist(), int(module.area(module.encode(soft)))
    print(name, *found[name])
assert found["pycocotools"] == ([0, 0, 1, 0, 0, 1, 0, 0], 2)
assert found["hotcoco"] == ([0, 0, 1, 1, 1, 1, 0, 0], 4)
EOF
