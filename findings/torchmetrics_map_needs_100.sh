#!/usr/bin/env bash
# torchmetrics 1.9.0: with max_detection_thresholds=[1, 10, 300], `map` is -1, though mar_300 and the APs by size are not.
# Guess: the last threshold is the cap of all APs, as of COCO's maxDets[2] in pycocotools 2.0.11's summary of AP50 and
#   AP75.
# Behaviour: `map` is the row of maxDets=100 of pycocotools' summary, which has none without 100 among the thresholds; a
#   training that keeps the checkpoint of highest map keeps the first one.
# Seen: map -1.0, map_50 1.0, mar_300 1.0; with [1, 10, 100] map 1.0
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torchmetrics==1.9.0 torch==2.14.1 torchvision==0.29.1 \
    pycocotools==2.0.11 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import torch
from torchmetrics.detection import MeanAveragePrecision


def found(cap: int) -> dict[str, float]:
    metric = MeanAveragePrecision(max_detection_thresholds=[1, 10, cap])
    boxes, labels = torch.tensor([[10.0, 10, 50, 50]]), torch.tensor([1])
    metric.update([{"boxes": boxes, "labels": labels, "scores": torch.tensor([0.9])}],
                  [{"boxes": boxes, "labels": labels}])
    return {name: float(value) for name, value in metric.compute().items() if value.ndim == 0}


values, usual = found(300), found(100)
print({name: values[name] for name in ("map", "map_50", "map_medium", "mar_300")}, usual["map"])
assert values["map"] == -1 and values["map_50"] == values["mar_300"] == usual["map"] == 1
EOF
