"""Training from memory: a step against its matrix products, the paper's schedule, and a step without a cache.

    python -m benchmarks.speed.training
    python -m benchmarks.speed.training --device cuda

Steps are those of `calib.train` itself, on 16 of LVIS v0.5's classes with the RoIs that these have in an image
(`benchmarks.speed.traincache`; 1,650 on average). The matrix products have the same shapes, in float32 on allocated
matrices: forward, and backward for the weights of every layer and the inputs of all but the first. On the CPU the
products of each step follow it; on a GPU, where steps overlap, the products of all steps follow together.

A *live* step is the least that training without a cache takes: 16 images of 800 × 1,200 pixels go through
ResNet-50-FPN and RPN, RoIAlign takes the step's RoIs, for `linear` the detector's own two layers follow, and then the
same step. On the CPU 3 images stand for the 16. The time of 12,000 steps is extrapolated from some hundred.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.speed.measure import Result, Timing, peak_memory, result, save, seconds
from benchmarks.speed.traincache import TrainCache
from calib.config import Config, HeadType
from calib.head_types import build_head
from calib.heads import Head, linear_layers
from calib.sampler import BiLevelSampler
from calib.train import train
from extract import RoICache

TARGETS: dict[HeadType, float] = {"2fc_rand": 0.85, "3fc_ft": 0.85, "linear": 0.6}
"""Speed of a step relative to its matrix products; 3fc_rand has the sizes of 3fc_ft."""
LIVE_TARGET = 150
"""Speed-up of a step over a live step."""
POOLED_IMAGES = 300
"""Images of the pooled cache: 2.7 GB of features."""
STEPS = {"pooled": 10, "embedding": 60}
WARM_UP = 4
PAPER_STEPS = 12_000
LIVE_SIZE, LIVE_IMAGES, LIVE_IMAGES_CPU = (800, 1200), 16, 3
LIVE_ROIS = 103
"""RoIs of an image: a sixteenth of a step's."""


def main(device: str) -> None:
    """Times all cases and saves the results."""
    pooled = TrainCache("pooled", POOLED_IMAGES)
    results: list[Result] = []
    steps: dict[HeadType, float] = {}
    pooled_types: tuple[HeadType, ...] = ("2fc_rand", "3fc_ft")
    for head_type in pooled_types:
        products, steps[head_type] = against_products(pooled, head_type, device)
        results.append(products)
    if device != "cpu":
        results.append(schedule(time_step(pooled, "3fc_ft", device, 500), "3fc_ft", 60, "a minute"))
    del pooled
    embedding = TrainCache("embedding")
    products, _ = against_products(embedding, "linear", device)
    steps["linear"] = time_step(embedding, "linear", device, 300)
    results += [
        products,
        schedule(steps["linear"], "linear", 600, "10 minutes"),
        schedule(time_step(embedding, "linear", device, 300, precision="bf16"), "linear in bf16", 600, "10 minutes"),
        *(against_live(head_type, steps[head_type], device) for head_type in ("linear", *pooled_types)),
    ]
    save("training" if device == "cpu" else f"training_{torch.device(device).type}", results)


def against_products(cache: TrainCache, head_type: HeadType, device: str) -> tuple[Result, float]:
    """Times a step against its matrix products; returns the mean seconds of a step as well."""
    sampler = BiLevelSampler(cast(RoICache, cache))
    head = build_head(cast(RoICache, cache), head_type, 1024, 0, {}).to(device)
    products = MatrixProducts(head, device)
    products.check()
    counts = [len(sampler.step(step).rows) for step in range(WARM_UP + STEPS[cache.level])]
    clock = StepClock(device, (lambda step: products.run(counts[step])) if device == "cpu" else None)
    memory = peak_memory(lambda: run_training(cache, head_type, device, len(counts), clock))
    step_times = np.array(clock.step_times[WARM_UP:])
    if device == "cpu":
        product_times = np.array(clock.between_times[WARM_UP:])
        times = float(np.median(step_times)), float(np.median(product_times))
        speedup = float(np.median(product_times / step_times))
    else:
        times = float(step_times.mean()), products.time(counts)
        speedup = times[1] / times[0]
    timing = Timing(*times, speedup, memory, products.bytes)
    case = f"step of {head_type}"
    return result(case, "its matrix products", timing, "at_least", TARGETS[head_type]), float(step_times.mean())


def schedule(step: float, case: str, budget: float, baseline: str) -> Result:
    """Compares the paper's 12,000 steps with a budget in seconds."""
    time = step * PAPER_STEPS
    return result(f"12,000 steps of {case}, extrapolated", baseline, Timing(time, budget, budget / time), "at_least", 1)


def against_live(head_type: HeadType, step: float, device: str) -> Result:
    """Times the same step live, against a step from the cache."""
    images = LIVE_IMAGES_CPU if device == "cpu" else LIVE_IMAGES
    features = time_live_features(images, head_type == "linear", device) * LIVE_IMAGES / images
    timing = Timing(step, features + step, (features + step) / step)
    return result(f"step of {head_type} from the cache", "the step live", timing, "at_least", LIVE_TARGET)


def time_step(cache: TrainCache, head_type: HeadType, device: str, steps: int, **options: Any) -> float:
    """Returns the mean wall time of a step, over `steps` of a run; `options` are fields of `calib.Config`."""
    clock = StepClock(device)
    run_training(cache, head_type, device, WARM_UP + steps, clock, **options)
    return sum(clock.step_times[WARM_UP:]) / steps


def run_training(
    cache: TrainCache | RoICache,
    head_type: HeadType,
    device: str,
    steps: int,
    clock: StepClock,
    **options: Any,
) -> None:
    """Trains, with the clock in place of the progress bar; `options` are fields of `calib.Config`."""
    config = Config(cache="", out="", head_type=head_type, steps=steps, device=device, **options)
    with patch("calib.train.progress_bar", lambda **_: clock):
        train(cast(RoICache, cache), config)


class StepClock:
    """A progress bar that takes the time of each step, and of what `between` does after it.

    On a GPU the time of a step is that of launching its work; their sum is right, because the last step waits for the
    GPU.

    Attributes:
        step_times, between_times: seconds, one entry per step.
    """

    def __init__(self, device: str, between: Callable[[int], object] | None = None) -> None:
        self.step_times: list[float] = []
        self.between_times: list[float] = []
        self._device, self._between = device, between
        self._started = 0.0

    def __enter__(self) -> StepClock:
        self._started = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        if self._device != "cpu":
            torch.cuda.synchronize()
            self.step_times[-1] += time.perf_counter() - self._started

    def update(self) -> None:
        """Takes the time of a step; called after each."""
        self.step_times.append(time.perf_counter() - self._started)
        if self._between is not None:
            between, step = self._between, len(self.step_times) - 1
            self.between_times.append(seconds(lambda: between(step)))
        self._started = time.perf_counter()

    def set_postfix_str(self, text: str) -> None:
        """Ignores the loss; called when it is logged."""


class MatrixProducts:
    """The matrix products of a training step through a head's layers, on matrices that are allocated already.

    Attributes:
        bytes: size of all matrices.
    """

    def __init__(self, head: Head, device: str, rows: int = 8192) -> None:
        self._layers = linear_layers(head.stages[0])
        self._weights = [layer.weight.detach() for layer in self._layers]
        widths = [self._weights[0].shape[1], *(len(w) for w in self._weights)]
        self._inputs = [torch.rand(rows, width, device=device) for width in widths]
        self._gradients = [torch.rand(rows, width, device=device) for width in widths[1:]]
        self._weight_gradients = [torch.zeros_like(w) for w in self._weights]
        matrices = (*self._inputs, *self._gradients, *self._weight_gradients)
        self.bytes = sum(t.numel() * t.element_size() for t in matrices)

    def run(self, rows: int) -> None:
        """Computes the products of a step of `rows` RoIs."""
        inputs, gradients = [x[:rows] for x in self._inputs], [g[:rows] for g in self._gradients]
        for depth, weight in enumerate(self._weights):
            torch.mm(inputs[depth], weight.T, out=inputs[depth + 1])
        for depth in reversed(range(len(self._weights))):
            torch.mm(gradients[depth].T, inputs[depth], out=self._weight_gradients[depth])
            if depth:
                torch.mm(gradients[depth], self._weights[depth], out=gradients[depth - 1])

    def time(self, counts: list[int]) -> float:
        """Returns the mean seconds of the steps after the warm-up on a GPU, given the RoIs of each step."""
        for rows in counts[:WARM_UP]:
            self.run(rows)
        torch.cuda.synchronize()

        def timed() -> None:
            for rows in counts[WARM_UP:]:
                self.run(rows)
            torch.cuda.synchronize()

        return seconds(timed) / (len(counts) - WARM_UP)

    def check(self) -> None:
        """Asserts that the first product is that of the head's first layer."""
        inputs = self._inputs[0][:8].clone()
        self.run(8)
        with torch.no_grad():
            first = self._layers[0]
            torch.testing.assert_close(self._inputs[1][:8], first(inputs) - first.bias)


@torch.inference_mode()
def time_live_features(images: int, embed: bool, device: str) -> float:
    """Returns the seconds from pixels to pooled features, or embeddings, of `LIVE_ROIS` RoIs in each of `images`."""
    from torchvision.models.detection import fasterrcnn_resnet50_fpn
    from torchvision.models.detection.image_list import ImageList

    torch.manual_seed(0)
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=1231).eval().to(device)
    pixels = torch.rand(1, 3, *LIVE_SIZE, device=device)

    def one_image() -> None:
        features = model.backbone(pixels)
        proposals, _ = model.rpn(ImageList(pixels, [LIVE_SIZE]), features)
        pooled = model.roi_heads.box_roi_pool(features, [proposals[0][:LIVE_ROIS]], [LIVE_SIZE])
        if embed:
            model.roi_heads.box_head(pooled)

    def all_images() -> None:
        for _ in range(images):
            one_image()
        if device != "cpu":
            torch.cuda.synchronize()

    one_image()
    return seconds(all_images)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    main(parser.parse_args().device)
