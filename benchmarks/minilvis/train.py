"""Trains the plain Mini-LVIS detector from scratch.

    OMP_NUM_THREADS=1 python -m benchmarks.minilvis.train --sampling plain --out data/runs/plain
    OMP_NUM_THREADS=1 python -m benchmarks.minilvis.train --sampling rfs --out data/runs/rfs

The same command again resumes from the last checkpoint, with the same result as an uninterrupted run. The final weights
and the log are written to OUT and, after a full run, to `weights/` beside this file.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torchvision.models.detection import MaskRCNN

from benchmarks.minilvis import check
from benchmarks.minilvis.dataset import Split, load
from benchmarks.minilvis.detector import mask_rcnn
from benchmarks.minilvis.sampling import Sampling, batches, repeat_factors

LOG_EVERY = 50  # steps
CHECKPOINT_EVERY = 200  # seconds
CHECKED_IMAGES = 100  # of val, after every epoch


@dataclass(frozen=True)
class Config:
    """One training run."""

    out: Path
    sampling: Sampling = "plain"
    data: Path = Path("data/minilvis")
    steps: int = 6400
    """Optimizer steps: 8 plain epochs of the full dataset, and as many for rfs."""
    batch: int = 8
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: int = 500
    """Steps in which the learning rate rises from 0 to `lr`, before it falls to 0 along a cosine."""
    seed: int = 0


def learning_rate(config: Config, step: int) -> float:
    """Returns the learning rate of step 0…steps-1."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def train(config: Config, checkpoint_every: float = CHECKPOINT_EVERY) -> Path:
    """Trains, or resumes, to the last step; returns the file of the final weights (float16 safetensors).

    Args:
        config: the run.
        checkpoint_every: seconds between checkpoints.

    Raises ValueError if OUT holds another run, FloatingPointError for a loss that is not finite.
    """
    torch.set_num_threads(1)  # one core per run
    config.out.mkdir(parents=True, exist_ok=True)
    checkpoint = config.out / "checkpoint.pt"
    data = load(config.data, "train")
    factors = image_factors(config, data)
    epoch_steps = max(1, len(data) // config.batch)

    torch.manual_seed(config.seed)
    detector = mask_rcnn(len(data.category_ids)).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(detector.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)
    first = resume(checkpoint, config, detector, optimizer)
    log = Log(config.out / "log.jsonl", first)
    if first == 0:
        log.write({"step": 0, **run_identity(config), "images_per_epoch": round(factors.sum())})

    saved = time.perf_counter()
    for step, chosen in zip(range(config.steps), batches(factors, config.batch, config.seed), strict=False):
        if step < first:
            continue
        log.add(train_step(config, step, data, chosen, detector, optimizer))
        done = step + 1
        if done % LOG_EVERY == 0:
            log.write_losses(done, config.batch)
        if done % epoch_steps == 0:
            log.write({"step": done, "epoch": done // epoch_steps, "ap": bin_ap(detector, config.data)})
        if time.perf_counter() - saved > checkpoint_every or done == config.steps:
            save(checkpoint, config, done, detector, optimizer)
            saved = time.perf_counter()
    return export(config, detector, log.path)


def image_factors(config: Config, data: Split) -> np.ndarray:
    """Returns how often each image is shown per epoch on average, (N,) float64."""
    if config.sampling == "plain":
        return np.ones(len(data))
    return repeat_factors([data.classes_of(i) for i in range(len(data))], len(data.category_ids))


def train_step(
    config: Config,
    step: int,
    data: Split,
    chosen: np.ndarray,
    detector: MaskRCNN,
    optimizer: torch.optim.Optimizer,
) -> dict[str, torch.Tensor]:
    """Trains on the chosen images, half of them flipped; returns the loss terms.

    Random numbers are seeded by step, so that a resumed run draws those of an uninterrupted one.
    """
    torch.manual_seed((config.seed << 32) + step)
    flips = np.random.default_rng((config.seed, 1, step)).random(config.batch) < 0.5
    images = [data.tensor(i, flip) for i, flip in zip(chosen, flips, strict=True)]
    targets = [data.target(i, flip) for i, flip in zip(chosen, flips, strict=True)]

    optimizer.param_groups[0]["lr"] = learning_rate(config, step)
    with torch.autocast("cpu", torch.bfloat16):
        losses: dict[str, torch.Tensor] = detector(images, targets)
    loss = torch.as_tensor(sum(losses.values()))
    if not torch.isfinite(loss):
        raise FloatingPointError(f"step {step}: loss is {loss.item()}")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(detector.parameters(), 10)
    optimizer.step()
    return losses


def bin_ap(detector: MaskRCNN, data: Path) -> dict[str, list[float]]:
    """Returns for each row of `check.evaluate` the mask AP of the four bins and of all classes."""
    table = check.evaluate(detector, data, CHECKED_IMAGES).loc["segm"]
    return {row: [round(value, 2) for value in values] for row, *values in table.iloc[:, :5].itertuples()}


class Log:
    """A log of JSON lines, each with its step.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, first: int) -> None:
        """Opens the log at step `first`; lines that an interrupted run wrote after its checkpoint are dropped."""
        self.path = path
        lines = path.read_text().splitlines(keepends=True) if first and path.is_file() else []
        path.write_text("".join(line for line in lines if json.loads(line)["step"] <= first))
        self._clear()

    def add(self, losses: dict[str, torch.Tensor]) -> None:
        """Adds one step's loss terms to the means."""
        self._steps += 1
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0) + value.item()

    def write_losses(self, step: int, batch: int) -> None:
        """Writes the mean of every loss term, and the images per second, since the last line."""
        means = {name: round(value / self._steps, 4) for name, value in self._sums.items()}
        rate = self._steps * batch / (time.perf_counter() - self._started)
        self.write({"step": step, **means, "images_per_second": round(rate, 1)})

    def write(self, line: dict[str, Any]) -> None:
        """Writes one line."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._clear()

    def _clear(self) -> None:
        self._steps = 0
        self._sums: dict[str, float] = {}
        self._started = time.perf_counter()


def save(path: Path, config: Config, step: int, detector: MaskRCNN, optimizer: torch.optim.Optimizer) -> None:
    """Writes a checkpoint after `step` steps, atomically."""
    state = {
        "step": step,
        "run": run_identity(config),
        "model": detector.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def resume(path: Path, config: Config, detector: MaskRCNN, optimizer: torch.optim.Optimizer) -> int:
    """Loads the checkpoint if there is one; returns the number of steps done.

    Raises ValueError naming the options that differ from those of the checkpoint's run.
    """
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    changed = {name for name, value in run_identity(config).items() if state["run"].get(name) != value}
    if changed:
        raise ValueError(f"{path}: made with another {', '.join(sorted(changed))}; choose another --out")
    detector.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def run_identity(config: Any) -> dict[str, Any]:
    """Returns the options of a Config dataclass that the result depends on, which excludes folders."""
    return {name: value for name, value in asdict(config).items() if name not in ("out", "data")}


def half_precision(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Returns a model's state_dict with its floats as float16."""
    state = model.state_dict().items()
    return {name: (value.half() if value.is_floating_point() else value).contiguous() for name, value in state}


def export(config: Config, detector: MaskRCNN, log_file: Path) -> Path:
    """Writes the weights as float16; after a full run copies them and the log to the committed folder."""
    path = config.out / f"{config.sampling}.safetensors"
    metadata = {
        "config": json.dumps(run_identity(config)),
        "builder": "benchmarks.minilvis.detector:mask_rcnn",
    }
    save_file(half_precision(detector), path, metadata)
    if config.data == Config.data and config.steps == Config.steps:
        committed = Path(__file__).parent / "weights"
        committed.mkdir(exist_ok=True)
        shutil.copy(path, committed / path.name)
        shutil.copy(log_file, committed / f"{config.sampling}.jsonl")
    return path


if __name__ == "__main__":
    import tyro

    print(train(tyro.cli(Config, description=__doc__)))
