#!/usr/bin/env bash
# MAPIE 1.6.0: expected_calibration_error with num_bins = n uses n - 1 bins, and one bin is NaN.
# Guess: the error over n equal bins of [0, 1], as calibstats 0.1.0, calibre 0.4.0 and the usual formula have it.
# Behaviour: n evenly spaced edges are made, hence n - 1 bins. With one bin, where the error is |mean score - accuracy|,
#   everything lies beyond the only edge and the result is 0 / 0. Curves over the number of bins are shifted by one.
# Seen: 3 bins by the formula 0.255; MAPIE with num_bins 3: 0.05, which is that of 2 bins, with 4: 0.255, with 1: nan
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile mapie==1.6.0 calibstats==0.1.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import warnings

import calibstats
import numpy as np
from mapie.metrics.calibration import expected_calibration_error

warnings.simplefilter("ignore", RuntimeWarning)
scores = np.repeat([0.11, 0.41, 0.61, 0.91], 5)
correct = np.array([1, 1, 1, 0, 0] + [0, 0, 0, 0, 0] + [1, 1, 1, 1, 1] + [1, 1, 0, 0, 0])


def definition(bins):
    index = np.ceil(scores * bins).astype(int)
    parts = [(index == k) for k in np.unique(index)]
    return sum(abs(scores[part].mean() - correct[part].mean()) * part.mean() for part in parts)


for bins in range(1, 6):
    found = expected_calibration_error(correct, scores, num_bins=bins)
    other = calibstats.ece(scores, correct, n_bins=bins)
    print(bins, "formula", round(definition(bins), 4), "calibstats", round(other, 4), "MAPIE", round(found, 4))
    assert np.isclose(other, definition(bins))
    assert np.isnan(found) if bins == 1 else np.isclose(found, definition(bins - 1))
assert len({round(definition(bins), 4) for bins in (2, 3, 4)}) == 3
EOF
