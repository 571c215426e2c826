#!/usr/bin/env bash
# ensemble-boxes 1.0.9: nms and soft_nms with weights write into the caller's score lists.
# Guess: the inputs stay as they are, as with weighted_boxes_fusion; the same call twice gives the same scores.
# Behaviour: the weighted scores replace the caller's, so each further call weights them once more.
# Seen: nms: 0.45, then 0.225, the input is then [0.225]; weighted_boxes_fusion: 0.45 twice, the input stays [0.9]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile ensemble-boxes==1.0.9 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
from ensemble_boxes import nms, soft_nms, weighted_boxes_fusion

boxes = [[[0.1, 0.1, 0.4, 0.4]], [[0.6, 0.6, 0.9, 0.9]]]
labels = [[0], [0]]
for method, expected in ((nms, [0.45, 0.225]), (soft_nms, [0.45, 0.225]), (weighted_boxes_fusion, [0.45, 0.45])):
    scores = [[0.9], [0.2]]
    first, second = (float(method(boxes, scores, labels, weights=[1, 1])[1][0]) for _ in range(2))
    print(method.__name__, first, second, "input afterwards", [float(s) for s in scores[0]])
    assert abs(first - expected[0]) < 1e-6 and abs(second - expected[1]) < 1e-6
    assert abs(float(scores[0][0]) - (0.9 if method is weighted_boxes_fusion else expected[1])) < 1e-6
EOF
