#!/usr/bin/env bash
# OpenCV 5.0.0: arrays of int64 are still cut to int32, silently, although 5 has matrices of 64-bit integers.
# Guess: 5 takes NumPy's int64 as it takes the other new types (uint32 and bool work), or refuses it as it refuses
#   uint64.
# Behaviour: the Python binding narrows int64 to int32 and wraps, as 4.x does. A map of instance ids packed as image *
#   2^32 + object keeps its shape and loses its values.
# Seen: flipped twice, int64 [[4294967301, 7]] is int32 [[5, 7]]; uint32 [[4294967295, 7]] is unchanged
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile opencv-python-headless==5.0.0.93
"$work/venv/bin/python" - <<'EOF'
import cv2
import numpy as np

for dtype, first in ((np.uint32, 2**32 - 1), (np.int64, 2**32 + 5)):
    labels = np.array([[first, 7]], dtype)
    flipped = cv2.flip(cv2.flip(labels, 1), 1)
    print(dtype.__name__, labels.tolist(), "flipped twice:", flipped.dtype, flipped.tolist())
    if dtype is np.uint32:
        assert flipped.dtype == np.uint32 and flipped.tolist() == labels.tolist()
    else:
        assert flipped.dtype == np.int32 and flipped.tolist() == [[5, 7]]
EOF
