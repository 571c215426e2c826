"""Trains the Hybrid Task Cascade of `htc.py` on Mini-LVIS, with mmengine's own runner.

    OMP_NUM_THREADS=1 python -m benchmarks.minilvis.train_htc --out data/runs/htc
    OMP_NUM_THREADS=1 python -m benchmarks.minilvis.train_htc --no-semantic --out data/runs/htc_no_semantic
    OMP_NUM_THREADS=1 python -m benchmarks.minilvis.train_htc --no-pretrained --no-semantic \
        --out data/runs/htc_scratch_no_semantic

The last two are the other rows of the paper's Table 11.

As detectors for LVIS start from COCO weights, this one starts from the plain detector's backbone and FPN
(`weights/plain.safetensors`). The backbone is frozen, the FPN is fine-tuned, everything after it is trained from
scratch. Each image is shown once per epoch. Classes that are not annotated count as absent, as in any plain detector.

The same command again resumes from the last checkpoint. The final weights (float16, mmdetection's parameter names) and
the log are written to OUT and, after a full run, to `weights/` beside this file.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine import Config as MmengineConfig
from mmengine.hooks import Hook
from mmengine.runner import Runner, find_latest_checkpoint
from safetensors.torch import load_file, save_file

from benchmarks import mmcv_ext
from benchmarks.minilvis import semantic
from benchmarks.minilvis.train import Log, half_precision, run_identity

LOG_EVERY = 50  # steps
CHECKPOINT_EVERY = 200  # steps
WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Config:
    """One training run."""

    out: Path
    data: Path = Path("data/minilvis")
    steps: int = 1000
    """Optimizer steps; an epoch of the full dataset has 800."""
    batch: int = 8
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: int = 100
    """Steps in which the learning rate rises from 0 to `lr`, before it falls to 0 along a cosine."""
    pretrained: bool = True
    """Start from the plain detector's backbone and FPN, the backbone frozen; otherwise train both from scratch."""
    semantic: bool = True
    """With the semantic branch."""
    seed: int = 0

    @property
    def name(self) -> str:
        """The name of the weights, e.g. htc or htc_scratch_no_semantic."""
        return f"htc{'' if self.pretrained else '_scratch'}{'' if self.semantic else '_no_semantic'}"

    @property
    def recipe(self) -> Path:
        """mmdetection's config of the detector."""
        return Path(__file__).parent / ("htc.py" if self.semantic else "htc_no_semantic.py")


def train(config: Config) -> Path:
    """Trains, or resumes, to the last step; returns the file of the final weights.

    Raises ValueError if OUT holds another run, FloatingPointError for a loss that is not finite.
    """
    torch.set_num_threads(1)
    mmcv_ext.install()
    if config.semantic:
        semantic.draw(semantic.Config(config.data))
    config.out.mkdir(parents=True, exist_ok=True)
    last = find_latest_checkpoint(config.out)
    if last:
        require_same_run(config)
    start = last or (str(warm_start(config.out)) if config.pretrained else None)
    runner = Runner.from_cfg(runner_config(config, start, resume=bool(last)))
    runner.model.to(memory_format=torch.channels_last)
    runner.register_hook(LossLog(config))
    return export(config, runner.train())


def runner_config(config: Config, weights: str | None, resume: bool) -> MmengineConfig:
    """Returns the recipe with the options that mmengine's runner needs in addition."""
    cfg = MmengineConfig.fromfile(config.recipe)
    if not config.pretrained:
        cfg.model.backbone.update(frozen_stages=-1, norm_cfg=dict(type="BN", requires_grad=True), norm_eval=False)
    steps, warmup = config.steps, config.warmup
    categories = json.loads((config.data / "train.json").read_text())["categories"]
    dataset = dict(
        type="CocoDataset",
        ann_file=str(config.data / "train.json"),
        data_prefix=dict(img=str(config.data / "train"), seg=str(config.data / "train_semantic")),
        metainfo=dict(classes=[one["name"] for one in sorted(categories, key=lambda one: one["id"])]),
        pipeline=cfg.train_pipeline,
    )
    sgd = dict(type="SGD", lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    cfg.update(
        work_dir=str(config.out),
        test_dataloader=None,
        load_from=weights,
        resume=resume,
        randomness=dict(seed=config.seed),
        train_cfg=dict(type="IterBasedTrainLoop", max_iters=steps),
        train_dataloader=dict(
            batch_size=config.batch,
            num_workers=0,
            sampler=dict(type="InfiniteSampler", seed=config.seed),
            dataset=dataset,
        ),
        optim_wrapper=dict(type="OptimWrapper", optimizer=sgd, clip_grad=dict(max_norm=10)),
        param_scheduler=[
            dict(type="LinearLR", start_factor=1 / warmup, end=warmup, by_epoch=False),
            dict(type="CosineAnnealingLR", T_max=steps - warmup, begin=warmup, end=steps, by_epoch=False),
        ],
        default_hooks=dict(
            logger=dict(type="LoggerHook", interval=LOG_EVERY),
            checkpoint=dict(type="CheckpointHook", interval=CHECKPOINT_EVERY, by_epoch=False, max_keep_ckpts=2),
        ),
    )
    return cfg


def warm_start(out: Path) -> Path:
    """Writes the plain detector's backbone and FPN under mmdetection's names, as a checkpoint."""
    path = out / "warm_start.pth"
    torch.save({"state_dict": backbone_weights(WEIGHTS / "plain.safetensors")}, path)
    return path


def backbone_weights(path: Path) -> dict[str, torch.Tensor]:
    """Reads backbone and FPN of `detector.mask_rcnn`'s weights: mmdetection's parameter name -> float32 tensor."""
    names = {"backbone.body.": "backbone."}
    for level in "012":
        names[f"backbone.fpn.inner_blocks.{level}.0."] = f"neck.lateral_convs.{level}.conv."
        names[f"backbone.fpn.layer_blocks.{level}.0."] = f"neck.fpn_convs.{level}.conv."
    return {
        new + name.removeprefix(old): value.float() if value.is_floating_point() else value
        for name, value in load_file(path).items()
        for old, new in names.items()
        if name.startswith(old)
    }


class LossLog(Hook):
    """A hook of mmengine's runner that writes the loss terms to the log of `train.py`."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def before_train(self, runner: Runner) -> None:
        """Opens the log."""
        self.log = Log(self.config.out / "log.jsonl", runner.iter)
        if runner.iter == 0:
            self.log.write({"step": 0, **run_identity(self.config)})

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, torch.Tensor] | None = None
    ) -> None:
        """Logs one step's loss terms, which are in `outputs`."""
        assert outputs is not None
        if not torch.isfinite(outputs["loss"]):
            raise FloatingPointError(f"step {runner.iter}: loss is {outputs['loss'].item()}")
        self.log.add(outputs)
        if (runner.iter + 1) % LOG_EVERY == 0:
            self.log.write_losses(runner.iter + 1, self.config.batch)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Removes mmengine's own log from a checkpoint: it has objects that torch refuses to load."""
        checkpoint["message_hub"] = {"log_scalars": {}, "runtime_info": {}, "resumed_keys": {}}


def require_same_run(config: Config) -> None:
    """Raises ValueError if the log, which begins with its run's config, is of another run."""
    path = config.out / "log.jsonl"
    made = json.loads(path.read_text().splitlines()[0])
    changed = [name for name, value in run_identity(config).items() if made.get(name) != value]
    if changed:
        raise ValueError(f"{path}: made with another {', '.join(changed)}; choose another --out")


def export(config: Config, model: torch.nn.Module) -> Path:
    """Writes the weights as float16; after a full run copies them and the log to the committed folder."""
    path = config.out / f"{config.name}.safetensors"
    metadata = {"config": json.dumps(run_identity(config)), "recipe": f"benchmarks/minilvis/{config.recipe.name}"}
    save_file(half_precision(model), path, metadata)
    if config.data == Config.data and config.steps == Config.steps:
        shutil.copy(path, WEIGHTS / path.name)
        shutil.copy(config.out / "log.jsonl", WEIGHTS / f"{config.name}.jsonl")
    return path


if __name__ == "__main__":
    import tyro

    print(train(tyro.cli(Config, description=__doc__)))
