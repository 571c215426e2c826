"""Train the Mini-LVIS detector from scratch.

    OMP_NUM_THREADS=1 python -m benchmarks.minilvis.train --sampling plain --out data/runs/plain
    OMP_NUM_THREADS=1 python -m benchmarks.minilvis.train --sampling rfs --out data/runs/rfs

The same command again goes on from the last checkpoint, to the same result as an uninterrupted run. The final
weights and the log go to OUT and, after a full run, into `weights/` here.
"""

import json
import math
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torchvision.models.detection import MaskRCNN

from benchmarks.minilvis import check
from benchmarks.minilvis.dataset import load
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
    """Optimizer steps: 8 plain epochs of the full data set, and as many for rfs."""
    batch: int = 8
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: int = 500
    """Steps from 0 to `lr`; from there a cosine goes down to 0."""
    seed: int = 0


def learning_rate(config: Config, step: int) -> float:
    """Of step 0…steps-1."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def train(config: Config) -> Path:
    """Run to the end; returns the file of the final weights (float16 safetensors)."""
    torch.set_num_threads(1)  # one core a run
    config.out.mkdir(parents=True, exist_ok=True)
    checkpoint = config.out / "checkpoint.pt"

    data = load(config.data, "train")
    num_classes = len(data.category_ids)
    factors = np.ones(len(data))
    if config.sampling == "rfs":
        factors = repeat_factors([data.classes_of(i) for i in range(len(data))], num_classes)
    epoch_steps = max(1, len(data) // config.batch)

    torch.manual_seed(config.seed)
    detector = mask_rcnn(num_classes).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(detector.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)
    first = resume(checkpoint, config, detector, optimizer)
    log = Log(config.out / "log.jsonl", first)
    if first == 0:
        log.write({"step": 0, **run_identity(config), "images_per_epoch": round(factors.sum())})

    saved = time.perf_counter()
    for step, chosen in zip(range(config.steps), batches(factors, config.batch, config.seed), strict=False):
        if step < first:
            continue
        # Seeds go by step, not by run: an interrupted run goes on with the numbers it would have drawn.
        torch.manual_seed((config.seed << 32) + step)
        flips = np.random.default_rng((config.seed, 1, step)).random(config.batch) < 0.5
        images = [data.tensor(i, flip) for i, flip in zip(chosen, flips, strict=True)]
        targets = [data.target(i, flip) for i, flip in zip(chosen, flips, strict=True)]

        optimizer.param_groups[0]["lr"] = learning_rate(config, step)
        with torch.autocast("cpu", torch.bfloat16):
            losses = detector(images, targets)
        loss = sum(losses.values())
        if not torch.isfinite(loss):
            raise FloatingPointError(f"step {step}: loss is {loss.item()}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 10)
        optimizer.step()

        log.add(losses)
        if (step + 1) % LOG_EVERY == 0:
            log.write_losses(step + 1, config.batch)
        if (step + 1) % epoch_steps == 0:
            log.write({"step": step + 1, "epoch": (step + 1) // epoch_steps, "ap": bin_ap(detector, config.data)})
        if time.perf_counter() - saved > CHECKPOINT_EVERY or step + 1 == config.steps:
            save(checkpoint, config, step + 1, detector, optimizer)
            saved = time.perf_counter()
    return export(config, detector, log.path)


def bin_ap(detector: MaskRCNN, data: Path) -> dict[str, list[float]]:
    """Row of the check → mask AP of the four bins and of all classes."""
    table = check.evaluate(detector, data, CHECKED_IMAGES).loc["segm"]
    return {row: [round(value, 2) for value in values] for row, *values in table.iloc[:, :5].itertuples()}


class Log:
    """JSON lines; every line has its step. What an interrupted run wrote after its checkpoint is dropped."""

    def __init__(self, path: Path, first: int):
        self.path = path
        lines = path.read_text().splitlines(keepends=True) if first and path.is_file() else []
        path.write_text("".join(line for line in lines if json.loads(line)["step"] <= first))
        self._clear()

    def add(self, losses: dict[str, torch.Tensor]) -> None:
        """Count one step's loss terms."""
        self.steps += 1
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value.item()

    def write_losses(self, step: int, batch: int) -> None:
        """The mean of every loss term, and the images per second, since the last such line."""
        means = {name: round(value / self.steps, 4) for name, value in self.sums.items()}
        rate = self.steps * batch / (time.perf_counter() - self.started)
        self.write({"step": step, **means, "images_per_second": round(rate, 1)})

    def write(self, line: dict) -> None:
        """Add one line."""
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._clear()

    def _clear(self):
        self.steps, self.sums, self.started = 0, {}, time.perf_counter()


def save(path: Path, config: Config, step: int, detector, optimizer) -> None:
    """Write the state after `step` steps; an interruption leaves the old file or the new one, whole."""
    state = {
        "step": step,
        "run": run_identity(config),
        "model": detector.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def resume(path: Path, config: Config, detector, optimizer) -> int:
    """Load the checkpoint if there is one; returns the number of steps done."""
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    changed = {name for name, value in run_identity(config).items() if state["run"].get(name) != value}
    if changed:
        raise ValueError(f"{path}: made with another {', '.join(sorted(changed))}; choose another --out")
    detector.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def run_identity(config: Config) -> dict:
    """The part of the config that decides the result; folders may move."""
    return {name: value for name, value in asdict(config).items() if name not in ("out", "data")}


def export(config: Config, detector, log_file: Path) -> Path:
    """Write the weights as float16; after a full run put them and the log where they are committed."""
    path = config.out / f"{config.sampling}.safetensors"
    half = {name: value.half() if value.is_floating_point() else value for name, value in detector.state_dict().items()}
    metadata = {
        "config": json.dumps(run_identity(config)),
        "builder": "benchmarks.minilvis.detector:mask_rcnn",
    }
    save_file({name: value.contiguous() for name, value in half.items()}, path, metadata)
    if config.data == Config.data and config.steps == Config.steps:
        committed = Path(__file__).parent / "weights"
        committed.mkdir(exist_ok=True)
        shutil.copy(path, committed / path.name)
        shutil.copy(log_file, committed / f"{config.sampling}.jsonl")
    return path


if __name__ == "__main__":
    import tyro

    print(train(tyro.cli(Config, description=__doc__)))
