#!/usr/bin/env bash
# safetensors 0.8.0: a NumPy array in Fortran order is saved as other numbers; up to 0.7.0 it was saved as it is.
# Guess: save_file stores values, as numpy.save does, or refuses what is not contiguous, as safetensors.torch does.
# Behaviour: the memory is written as it lies, under the shape of the array. A transposed classifier (weight.T), a
#   column block or every second row comes back with other values, or with those of its neighbours; nothing is said.
# Seen: [[0, 1, 2], [3, 4, 5]] in Fortran order: 0.7.0 the same; 0.8.0 [[0, 3, 1], [4, 2, 5]]; every second number of
#   0 ... 5: 0.7.0 [0, 2, 4]; 0.8.0 [0, 1, 2]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile numpy==2.4.6
for version in 0.7.0 0.8.0; do
  "$work/venv/bin/pip" install --quiet --no-compile --no-deps --target "$work/$version" "safetensors==$version"
done
cat >"$work/save.py" <<'EOF'
import sys

import numpy as np
from safetensors.numpy import load, save

weight = np.asfortranarray(np.arange(6.0).reshape(2, 3))
found = load(save({"weight": weight, "second": np.arange(6.0)[::2]}))
print(sys.argv[1], {name: found[name].tolist() for name in sorted(found)})
if sys.argv[1] == "0.7.0":
    assert (found["weight"] == weight).all() and found["second"].tolist() == [0, 2, 4]
else:
    assert found["weight"].tolist() == [[0, 3, 1], [4, 2, 5]] and found["second"].tolist() == [0, 1, 2]
EOF
for version in 0.7.0 0.8.0; do
  PYTHONPATH="$work/$version" "$work/venv/bin/python" "$work/save.py" "$version"
done
