#!/usr/bin/env bash
# OpenCV 5.0.0: minAreaRect has another angle convention than 4.12.0, for the same points.
# Guess: the convention of 4.5.1 and later stays: angles in (0, 90], the first side of the size being the one at that
#   angle.
# Behaviour: 5.0.0 gives angles in [-90, 0), the range before 4.5.1, with width and height exchanged. The corners are
#   the same, but code that sorts by angle or writes (width, height, angle), as for DOTA's oriented boxes, changes its
#   output.
# Seen: 4.12.0: size (4.47, 2.24), angle 26.57; 5.0.0: size (2.24, 4.47), angle -63.43
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 4.12.0.88 5.0.0.93; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/pip" install --quiet --no-compile "opencv-python-headless==$version"
    "$work/$version/bin/python" - "$version" <<'EOF'
import sys

import cv2
import numpy as np

generator = np.random.default_rng(0)
clouds = generator.uniform(0, 100, (1000, 5, 2)).astype(np.float32)
angles = np.array([cv2.minAreaRect(points)[2] for points in clouds])
points = np.array([[0, 0], [4, 2], [3, 4], [-1, 2]], np.float32)
(_, size, angle), corners = cv2.minAreaRect(points), cv2.boxPoints(cv2.minAreaRect(points))
print(cv2.__version__, "size", np.round(size, 2), "angle", round(angle, 2), "range", angles.min(), angles.max())
assert np.allclose(sorted(corners.tolist()), sorted(points.tolist()), atol=1e-4)  # the rectangle is the same
if sys.argv[1].startswith("4"):
    assert np.allclose(size, (4.4721, 2.2361), atol=1e-3) and abs(angle - 26.565) < 1e-2
    assert angles.min() > 0 and angles.max() <= 90
else:
    assert np.allclose(size, (2.2361, 4.4721), atol=1e-3) and abs(angle + 63.435) < 1e-2
    assert angles.min() >= -90 and angles.max() < 0
EOF
done
