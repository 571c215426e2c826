"""Processor time of a process's first NMS and first masks: with no kernel on disk, and with those of another process.

    python -m benchmarks.speed.compilation

Each pair of processes has Numba's cache in a folder of its own. The baseline is the second call in the same process;
results of both calls are checked to be equal. Numba compiles in one thread, so processor time is wall time on a machine
that does nothing else. 1,000 RoIs, LVIS v0.5's 1,230 classes, 300 masks.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import numpy as np
import tyro

from benchmarks.speed.measure import Result, result, save, timing

TARGETS = {
    "first class_nms, no kernels on disk": 4,
    "first masks, no kernels on disk": None,
    "first class_nms, kernels on disk": 1,
    "first masks, kernels on disk": 1,
}
"""Seconds."""
PROGRAM = """
from benchmarks.speed.compilation import print_times
print_times()
"""


def main(rounds: int = 3) -> None:
    """Times pairs of processes and saves the results."""
    pairs: dict[str, list[tuple[float, float]]] = {case: [] for case in TARGETS}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            for case, pair in zip(TARGETS, _times_in_process(folder) + _times_in_process(folder), strict=True):
                pairs[case].append(pair)
    save("compilation", [_result(case, times) for case, times in pairs.items()])


def print_times() -> None:
    """Prints processor seconds of the first and the second call of two functions, and checks that results are equal."""
    from time import process_time

    from benchmarks.speed.inputs import SIZE, disc_masks, logits, proposals
    from extract.class_scores import softmax
    from fuse.ops.masks import encode_masks
    from fuse.ops.nms import class_nms

    boxes, scores = proposals(), softmax(logits())
    masks = disc_masks(300, np.random.default_rng(0))
    for call in (lambda: class_nms(boxes, scores), lambda: encode_masks(masks, boxes[:300], *SIZE)):
        results, moments = [], [process_time()]
        for _ in range(2):
            results.append(call())
            moments.append(process_time())
        np.testing.assert_equal(results[0], results[1])
        print(*np.diff(moments))


def _times_in_process(folder: str) -> list[tuple[float, float]]:
    """Returns what `print_times` prints in a new process whose kernels are in a folder."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    lines = [line.split() for line in done.stdout.splitlines()]
    return [(float(first), float(second)) for first, second in lines]


def _result(case: str, times: list[tuple[float, float]]) -> Result:
    target = TARGETS[case]
    return result(case, "the second call", timing(times), "seconds_at_most" if target else None, target)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
