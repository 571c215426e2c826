"""Training on hidden features: a step of head type auto against the paper's step, and against the same step live.

    python -m benchmarks.speed.hidden
    python -m benchmarks.speed.hidden --device cuda

Cache, steps and live steps are those of `benchmarks.speed.training`. The paper's step is that of `3fc_ft` on pooled
features and all foreground RoIs, in float32. Head type auto takes at most 4 foreground RoIs per class and image and
trains `3fc_ft` or `3fc_lowrank`. That hidden features train as pooled ones with a frozen first layer do, and that a
correction is trained as the first layer is along its directions: `tests/test_hidden_heads.py` holds both equal.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.speed.measure import Result, Timing, result, save
from benchmarks.speed.traincache import TrainCache
from benchmarks.speed.training import LIVE_IMAGES, LIVE_IMAGES_CPU, POOLED_IMAGES, time_live_features, time_step
from calib.choice import CANDIDATES, ROIS_PER_CLASS
from calib.config import Precision

TARGETS: dict[Precision, float] = {"fp32": 25, "bf16": 50}
"""Speed-up over the paper's step, by precision."""
LIVE_TARGET = 1500
PAPER_STEPS, STEPS = 20, 200


def main(device: str) -> None:
    """Times all cases and adds the results to those of `benchmarks.speed.training`."""
    paper = time_step(TrainCache("pooled", POOLED_IMAGES), "3fc_ft", device, PAPER_STEPS)
    images = LIVE_IMAGES_CPU if device == "cpu" else LIVE_IMAGES
    live = time_live_features(images, False, device) * LIVE_IMAGES / images
    cache = TrainCache("hidden")
    results: list[Result] = []
    for head_type in CANDIDATES:
        for precision, target in TARGETS.items():
            step = time_step(cache, head_type, device, STEPS, precision=precision, rois_per_class=ROIS_PER_CLASS)
            case = f"step of {head_type} on hidden features, {precision}"
            against_paper = Timing(step, paper, paper / step)
            against_live = Timing(step, live + step, (live + step) / step)
            results.append(result(case, "step of 3fc_ft on pooled features", against_paper, "at_least", target))
            results.append(result(case, "the step live", against_live, "at_least", LIVE_TARGET))
    save("training" if device == "cpu" else f"training_{torch.device(device).type}", results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    main(parser.parse_args().device)
