"""Training from memory: a step against its bare matrix products, the paper's schedule, and a step done live.

    python -m benchmarks.speed.training
    python -m benchmarks.speed.training --device cuda

Steps are those of `calib.train` itself, on 16 of LVIS v0.5's classes with as many RoIs as they bring
(`benchmarks.speed.traincache`; 1,650 on average). *Bare* are the products of the same shapes in float32 with ready
matrices: forward, and backward for the weights of every layer and the inputs of all but the first. On the CPU a bare
step follows each step; on a GPU, where steps overlap, all of them do.

*Live* is what a step takes without a cache, at the least: 16 images of 800 x 1,200 through ResNet-50-FPN and proposal
network, RoIAlign of the step's RoIs, for `linear` the detector's own two layers on them, and then the same step. On the
CPU 3 images stand for the 16. The 12,000 steps are extrapolated from some hundred.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

import calib.train as trainer
from benchmarks.speed import measure
from benchmarks.speed.traincache import TrainCache
from calib.config import Config
from calib.heads import build_head
from calib.sampler import BiLevelSampler

CASES = {"2fc_rand": ("pooled", 0.85), "3fc_ft": ("pooled", 0.85), "linear": ("embedding", 0.6)}
"""Level, and share of the bare rate to reach; 3fc_rand has the sizes of 3fc_ft."""
IMAGES = 300
"""Of the pooled cache: 2.7 GB of features."""
STEPS = {"pooled": 10, "embedding": 60}
WARM_UP = 4
PAPER_STEPS = 12_000
LIVE_SIZE, LIVE_IMAGES = (800, 1200), 16


def main(device: str) -> None:
    """Prints the table and keeps it."""
    rows, steps = [], {}
    for level in ("pooled", "embedding"):
        cache = TrainCache(level, IMAGES if level == "pooled" else None)
        for kind, at_least in ((kind, bound) for kind, (own, bound) in CASES.items() if own == level):
            pair, steps[kind] = against_bare(cache, kind, device)
            rows.append(measure.row(f"step of {kind}", "its matrix products", pair, at_least=at_least))
        if level == "pooled" and device != "cpu":
            rows.append(_paper(seconds_per_step(cache, "3fc_ft", device, 500), "3fc_ft", 60, "a minute"))
        if level == "embedding":
            steps["linear"] = seconds_per_step(cache, "linear", device, 300)
            rows.append(_paper(steps["linear"], "linear", 600, "10 minutes"))
            half = seconds_per_step(cache, "linear", device, 300, "bf16")
            rows.append(_paper(half, "linear in bf16", 600, "10 minutes"))
    images = LIVE_IMAGES if device != "cpu" else 3
    for kind in ("linear", "2fc_rand", "3fc_ft"):
        live = live_images(images, kind == "linear", device) * LIVE_IMAGES / images + steps[kind]
        pair = measure.Pair(steps[kind], live, live / steps[kind], 0, 0)
        rows.append(measure.row(f"step of {kind} from the cache", "the step live", pair, at_least=150))
    measure.keep("training" if device == "cpu" else f"training_{torch.device(device).type}", rows)


def against_bare(cache: TrainCache, kind: str, device: str) -> tuple[measure.Pair, float]:
    """Seconds of a step and of its products, and the step's alone."""
    sampler = BiLevelSampler(cache)
    head = build_head(cache, kind, 1024, 0, {}).to(device)
    products = Products([layer.weight.detach() for layer in head.stages[0] if hasattr(layer, "weight")], device)
    _check(products, head)
    counts = [len(sampler.step(step).rows) for step in range(WARM_UP + STEPS[cache.level])]
    between = _Clock(device, (lambda step: products.run(counts[step])) if device == "cpu" else None)
    memory = measure.peak_memory(lambda: run(cache, kind, device, len(counts), between))
    ours = np.array(between.seconds)[WARM_UP:]
    if device == "cpu":
        other = np.array(between.others)[WARM_UP:]
    else:
        for step in range(WARM_UP):
            products.run(counts[step])
        torch.cuda.synchronize()
        total = measure.seconds(lambda: ([products.run(n) for n in counts[WARM_UP:]], torch.cuda.synchronize()))
        other = np.array([total / len(ours)])
        ours = np.array([ours.mean()])
    pair = measure.Pair(np.median(ours), np.median(other), float(np.median(other / ours)), memory, products.bytes)
    return pair, float(ours.mean())


def seconds_per_step(cache: TrainCache, kind: str, device: str, steps: int, precision: str = "fp32") -> float:
    """Wall time of a step, averaged over `steps` of an undisturbed run."""
    clock = _Clock(device)
    run(cache, kind, device, WARM_UP + steps, clock, precision)
    return sum(clock.seconds[WARM_UP:]) / steps


def run(cache: TrainCache, kind: str, device: str, steps: int, clock: _Clock, precision: str = "fp32") -> None:
    """Trains, with the clock in the place of the progress bar."""
    bar, trainer.tqdm = trainer.tqdm, lambda **_: clock
    try:
        trainer.train(cache, Config(cache="", out="", head_type=kind, steps=steps, device=device, precision=precision))
    finally:
        trainer.tqdm = bar


class _Clock:
    """Takes the time between steps, and of what is done `between` them, which counts for itself.

    On a GPU a step's time is when the work for it had been given out; their sum is right once the GPU has been waited
    for, which the last step does.
    """

    def __init__(self, device: str, between: Callable[[int], object] | None = None) -> None:
        self.seconds: list[float] = []
        self.others: list[float] = []
        self._device, self._between = device, between

    def __enter__(self) -> _Clock:
        self._since = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        if self._device != "cpu":
            torch.cuda.synchronize()
            self.seconds[-1] += time.perf_counter() - self._since

    def update(self) -> None:
        self.seconds.append(time.perf_counter() - self._since)
        if self._between:
            self.others.append(measure.seconds(lambda: self._between(len(self.seconds) - 1)))
        self._since = time.perf_counter()

    def set_postfix_str(self, text: str) -> None:
        pass


class Products:
    """The matrix products of a step through layers of these weights (out, in), on matrices that are there already."""

    def __init__(self, weights: list[torch.Tensor], device: str, rows: int = 8192) -> None:
        widths = [weights[0].shape[1], *(len(w) for w in weights)]
        self.weights = weights
        self.inputs = [torch.rand(rows, width, device=device) for width in widths]
        self.gradients = [torch.rand(rows, width, device=device) for width in widths[1:]]
        self.weight_gradients = [torch.zeros_like(w) for w in weights]
        everything = (*self.inputs, *self.gradients, *self.weight_gradients)
        self.bytes = sum(t.numel() * t.element_size() for t in everything)

    def run(self, rows: int) -> None:
        """Those of a step of so many RoIs."""
        inputs, gradients = [x[:rows] for x in self.inputs], [g[:rows] for g in self.gradients]
        for depth, weight in enumerate(self.weights):
            torch.mm(inputs[depth], weight.T, out=inputs[depth + 1])
        for depth in reversed(range(len(self.weights))):
            torch.mm(gradients[depth].T, inputs[depth], out=self.weight_gradients[depth])
            if depth:
                torch.mm(gradients[depth], self.weights[depth], out=gradients[depth - 1])


def _check(products: Products, head: torch.nn.Module) -> None:
    """The products are the head's own."""
    inputs = products.inputs[0][:8].clone()
    products.run(8)
    with torch.no_grad():
        first, *others = (layer for layer in head.stages[0] if hasattr(layer, "weight"))
        torch.testing.assert_close(products.inputs[1][:8], first(inputs) - first.bias)
    assert len(others) + 1 == len(products.weights)


def _paper(step: float, kind: str, bound: float, words: str) -> dict[str, str]:
    seconds = step * PAPER_STEPS
    pair = measure.Pair(seconds, bound, bound / seconds, 0, 0)
    return measure.row(f"12,000 steps of {kind}, extrapolated", words, pair, at_least=1)


@torch.inference_mode()
def live_images(images: int, embed: bool, device: str, rois: int = 103) -> float:
    """Seconds of so many images up to the features of a step's RoIs, a sixteenth of 1,650 of each."""
    from torchvision.models.detection import fasterrcnn_resnet50_fpn
    from torchvision.models.detection.image_list import ImageList

    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=1231).eval().to(device)
    pixels = torch.rand(1, 3, *LIVE_SIZE, device=device)

    def image() -> None:
        features = model.backbone(pixels)
        proposals, _ = model.rpn(ImageList(pixels, [LIVE_SIZE]), features)
        pooled = model.roi_heads.box_roi_pool(features, [proposals[0][:rois]], [LIVE_SIZE])
        if embed:
            model.roi_heads.box_head(pooled)

    def all_images() -> None:
        for _ in range(images):
            image()
        if device != "cpu":
            torch.cuda.synchronize()

    image()
    return measure.seconds(all_images)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    main(parser.parse_args().device)
