"""Trains a detectron2 Cascade Mask R-CNN on Mini-LVIS, the model of `cascade.yaml`.

    OMP_NUM_THREADS=1 python -m benchmarks.minilvis.train_cascade --out data/runs/cascade

As detectors for LVIS start from COCO weights, this one starts from the ResNet body and the FPN of the plain torchvision
detector in `weights/plain.safetensors`. The body is frozen; FPN, RPN and heads are trained, with each image equally
often. Objects of classes that are not annotated count as background, as in any plain detector.

The same command again resumes from the last checkpoint. The final weights and the log are written to OUT and, after a
full run, to `weights/` beside this file.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import SimpleTrainer, hooks
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import CommonMetricPrinter, JSONWriter
from detectron2.utils.logger import setup_logger
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.minilvis import cascade
from benchmarks.minilvis.dataset import Split, load
from benchmarks.minilvis.sampling import batches
from benchmarks.minilvis.train import half_precision

HERE = Path(__file__).parent
RECIPE = HERE / "cascade.yaml"
# torchvision's parameter names of the backbone -> detectron2's, which counts FPN levels from 2.
RENAMED: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^backbone\.body\.(conv1|bn1)\.", r"backbone.bottom_up.stem.\1."),
    (r"^backbone\.body\.layer(\d)\.", lambda found: f"backbone.bottom_up.res{int(found[1]) + 1}."),
    (r"^backbone\.fpn\.inner_blocks\.(\d)\.0\.", lambda found: f"backbone.fpn_lateral{int(found[1]) + 2}."),
    (r"^backbone\.fpn\.layer_blocks\.(\d)\.0\.", lambda found: f"backbone.fpn_output{int(found[1]) + 2}."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)


@dataclass(frozen=True)
class Config:
    """One training run; `cascade.yaml` has all other options."""

    out: Path
    data: Path = Path("data/minilvis")
    backbone: Path = HERE / "weights" / "plain.safetensors"
    """Weights of the detector whose backbone it starts from."""
    steps: int | None = None
    """Steps in place of the recipe's, for a trial run."""


def recipe(steps: int | None = None) -> CfgNode:
    """Reads `cascade.yaml` as detectron2's config."""
    cfg = get_cfg()
    cascade.register(cfg)
    cfg.merge_from_file(str(RECIPE))
    cfg.SOLVER.MAX_ITER = steps or cfg.SOLVER.MAX_ITER
    return cfg


def train(config: Config) -> Path:
    """Trains, or resumes, to the last step; returns the file of the final weights (float16 safetensors)."""
    torch.set_num_threads(1)
    setup_logger()
    cfg = recipe(config.steps)
    config.out.mkdir(parents=True, exist_ok=True)
    log = config.out / "log.jsonl"

    torch.manual_seed(cfg.SEED)
    model = build_model(cfg)
    load_backbone(model, config.backbone)
    optimizer = build_optimizer(cfg, model)
    trainer = SimpleTrainer(model, data_loader=None, optimizer=optimizer)
    checkpointer = DetectionCheckpointer(model, str(config.out), trainer=trainer)
    # Log and checkpoint are written at the same steps, so that a resumed run's log has no gap.
    period, steps = cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.MAX_ITER
    writers = [CommonMetricPrinter(steps), JSONWriter(str(log), window_size=period)]
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            # Random numbers are seeded by step, so that a resumed run draws those of an uninterrupted one.
            hooks.CallbackHook(before_step=lambda trainer: torch.manual_seed((cfg.SEED << 32) + trainer.iter)),
            hooks.LRScheduler(optimizer, build_lr_scheduler(cfg, optimizer)),
            hooks.PeriodicWriter(writers, period),
            hooks.PeriodicCheckpointer(checkpointer, period, max_to_keep=1),
        ]
    )
    checkpointer.resume_or_load("", resume=True)
    first = trainer.iter + 1 if checkpointer.has_checkpoint() else 0
    drop_lines(log, first)
    if first < steps:
        trainer.data_loader = loader(load(config.data, "train"), cfg, first)
        trainer.train(first, steps)
    return export(config, model, log)


def drop_lines(log: Path, first: int) -> None:
    """Drops the log lines from step `first` on, which an interrupted run wrote after its last checkpoint."""
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(line for line in lines if json.loads(line)["iteration"] < first))


def load_backbone(model: nn.Module, path: Path) -> None:
    """Loads body and FPN of `model` from the weights of `detector.mask_rcnn`. Raises ValueError if names differ."""
    state = {_renamed(name): value.float() for name, value in load_file(path).items() if name.startswith("backbone.")}
    own = {name for name in model.state_dict() if name.startswith("backbone.")}
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    if own != state.keys():
        raise ValueError(f"{path}: backbone differs from cascade.yaml's in {sorted(own ^ state.keys())[:4]}")
    model.load_state_dict(state, strict=False)


def _renamed(name: str) -> str:
    for pattern, new in RENAMED:
        name = re.sub(pattern, new, name)
    return name


def loader(data: Split, cfg: CfgNode, first: int) -> Iterator[list[dict[str, Any]]]:
    """Yields batches from step `first` on in the form that detectron2's models take; half of the images are flipped."""
    size = cfg.SOLVER.IMS_PER_BATCH
    order = batches(np.ones(len(data)), size, cfg.SEED)
    for step, chosen in enumerate(islice(order, first, None), first):
        flips = np.random.default_rng((cfg.SEED, 1, step)).random(size) < 0.5
        yield [sample(data, i, flip) for i, flip in zip(chosen, flips, strict=True)]


def sample(data: Split, index: int, flip: bool = False) -> dict[str, Any]:
    """Returns one image, RGB from 0 to 255, with its objects of classes 0…K-1."""
    image, target = data.tensor(index, flip) * 255, data.target(index, flip)
    objects = Instances(tuple(image.shape[1:]))
    objects.gt_boxes = Boxes(target["boxes"])
    objects.gt_classes = target["labels"] - 1
    objects.gt_masks = BitMasks(target["masks"])
    return {"image": image, "instances": objects}


def export(config: Config, model: nn.Module, log: Path) -> Path:
    """Writes the weights as float16; after a full run copies them and the log to the committed folder."""
    path = config.out / "cascade.safetensors"
    save_file(half_precision(model), path, {"recipe": RECIPE.name})
    if config.data == Config.data and config.steps is None:
        shutil.copy(path, HERE / "weights" / path.name)
        shutil.copy(log, HERE / "weights" / "cascade.jsonl")
    return path


if __name__ == "__main__":
    import tyro

    print(train(tyro.cli(Config, description=__doc__)))
