#!/usr/bin/env bash
# numba 0.68.1: beside a Python number, float32 arrays become float64, so scores at a threshold are above it.
# Guess: compiled code computes as NumPy 2.4.6 does, where a Python number takes the array's type.
# Behaviour: float32's 0.1 is 0.1000000015. NumPy and torch round the threshold too, so that the score is not above 0.1;
#   numba compares in float64. np.histogram puts scores at the edges of bins elsewhere for the same reason, and with
#   them a calibration error. np.median of values with a NaN is a number, any of the others.
# Seen: float32 [0.1] > 0.1: NumPy False, numba True; 0, 0.1 … 1.0 in ten bins: NumPy 1 1 1 1 1 1 1 1 1 2, numba 1 1 1 1
#   1 1 2 0 2 1; median of 3, NaN, 0, 1, 2: NumPy nan, numba a number
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile numba==0.68.1 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import warnings

import numpy as np
from numba import njit

warnings.simplefilter("ignore")


def above(scores):
    return scores > 0.1


def bins(scores):
    return np.histogram(scores, 10, (0.0, 1.0))[0]


def median(values):
    return np.median(values)


scores, edges = np.array([0.1], np.float32), np.arange(0, 1.01, 0.1).astype(np.float32)
values = np.array([3, np.nan, 0, 1, 2], np.float32)
for function, array in ((above, scores), (bins, edges), (median, values)):
    print(function.__name__, "NumPy", function(array), "numba", njit(function)(array))
assert not above(scores)[0] and njit(above)(scores)[0]
assert bins(edges).tolist() == [1] * 9 + [2] and njit(bins)(edges).tolist() == [1, 1, 1, 1, 1, 1, 2, 0, 2, 1]
assert np.isnan(median(values)) and not np.isnan(njit(median)(values))
EOF
