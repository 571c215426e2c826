"""Trains new classification heads on a train cache: one head per stage, all stages in one run.

    python -m calib.train --cache train.zarr --out head          # the paper's: 3fc_ft, 12,000 steps
    python -m calib.train --cache train.zarr --out head --head-type linear --steps 3000
    python -m calib.train --cache train.zarr --out head --precision bf16 --device cuda:1
    torchrun --nproc-per-node 8 -m calib.train --cache train.zarr --out head     # the same head from 8 GPUs or machines

The same command again resumes, `--overwrite` starts anew, `--help` lists the rest. In a notebook:

    head = calib.train_head("train.zarr", head_type="2fc_rand", steps=1000)

Method: Wang et al., "Classification Calibration for Long-tail Instance Segmentation" (2019); softmax
cross-entropy over K+1 classes on bi-level samples, SGD 0.01 falling tenfold at 8/12 and 11/12 of the run.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # before the imports below, so that --help does not wait for torch
    from calib.config import Config
    from extract.utils import cli

    sys.exit(cli.run("python -m calib.train", {"": cli.Command(Config, "calib.train:main")}))

import logging
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from calib.checkpoint import is_finished, load_checkpoint, prepare_folder, remove_checkpoint, save_checkpoint
from calib.config import Config
from calib.features import Features
from calib.head_io import load_head, save_head
from calib.heads import Head, Stages, build_head
from calib.loader import batches
from calib.metrics import MetricsLog, Tally
from calib.sampler import BiLevelSampler
from extract.utils.devices import resolve_device
from extract.utils.distributed import (
    all_reduce_min,
    any_process,
    barrier,
    distributed_data_parallel,
    is_main_process,
    process_group,
    world_size,
)

if TYPE_CHECKING:
    from extract import RoICache

logger = logging.getLogger(__name__)

LOG_EVERY = 50
STOP_EVERY = 10
"""Steps between which several processes ask each other whether one was interrupted: torchrun waits 30 s for them."""
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions that are not torch's own."""


def train(cache: RoICache, config: Config) -> Head:
    """Trains a head as `config` says, resuming what is in `config.out`; an empty `out` writes nothing.

    Under torchrun each process trains on its share of every step's RoIs, and all return the same head; the files are
    the first process's.

    Raises:
        ValueError: the cache is not a train cache or does not fit the head, `out` holds another configuration, or
            a value is not finite.
        KeyboardInterrupt: Ctrl-C or SIGTERM; a checkpoint of the last whole step is in `config.out`.
    """
    if cache.split != "train":
        raise ValueError(
            f"{cache.url}: is a cache of split {cache.split!r}, a head is trained on one extracted with --split train"
        )
    device = resolve_device(config.device)
    with process_group(device):
        return _train(cache, config, device)


def _train(cache: RoICache, config: Config, device: torch.device) -> Head:
    identity = config.identity(cache.fingerprint)
    out = Path(config.out)
    if config.out and not config.overwrite and is_finished(out, identity):
        logger.info("%s: is finished already", out)
        return load_head(out, device)

    head = build_head(cache, config.head_type, config.hidden, config.seed, identity).to(device)
    trained = [p for p in head.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        trained, config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
    )
    # The fused kernel leaves its own first momentum uninitialised if the scaler skips the first step.
    for parameter in trained:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    sampler = BiLevelSampler(cache, config.classes_per_step, config.images_per_class, config.seed)
    features = Features(cache, device)
    keeps_files = bool(config.out) and is_main_process()
    if keeps_files:
        prepare_folder(out, config.overwrite)
    barrier()
    first = load_checkpoint(out, head, optimizer, scaler) if config.out else 0
    network = distributed_data_parallel(Stages(head), device)
    tally, since, logged = Tally(device), time.perf_counter(), first

    with (
        _deferred_interrupt() as interrupted,
        closing(MetricsLog(config.out if keeps_files else "", first)) as log,
        closing(batches(sampler, features, len(cache.stages), range(first, config.steps))) as loader,
        tqdm(
            total=config.steps,
            initial=first,
            unit="step",
            desc=f"train {config.head_type}",
            disable=None if is_main_process() else True,
        ) as bar,
    ):
        for step, batch in enumerate(loader, first):
            for group in optimizer.param_groups:
                group["lr"] = config.lr_at(step)
            with torch.autocast(device.type, AUTOCAST.get(config.precision), config.precision in AUTOCAST):
                logits = network([stage.inputs for stage in batch])
            # Gradients are averaged over the processes, so this makes them those of the mean over all RoIs.
            losses = [
                cross_entropy(z.float(), stage.targets, reduction="sum") / (stage.num_rois / world_size())
                for z, stage in zip(logits, batch, strict=True)
            ]
            scaler.scale(sum(losses)).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            for loss, z, stage in zip(losses, logits, batch, strict=True):
                tally.add(loss, z, stage.targets)
            bar.update()

            done = step + 1
            ask = world_size() == 1 or done % STOP_EVERY == 0
            stop = ask and any_process(interrupted.is_set(), device)
            keep = bool(config.out) and (stop or done % config.checkpoint_every == 0)
            if done % LOG_EVERY == 0 or done == config.steps or keep:
                record = {"step": done, "lr": config.lr_at(step), **tally.take()}
                if not math.isfinite(record["loss"]):
                    _explain(cache, config, sampler, features, range(logged, done))
                record["rois_per_s"] = record.pop("rois") / (time.perf_counter() - since)
                since, logged = time.perf_counter(), done
                log.write(record)
                bar.set_postfix_str(
                    f"loss {record['loss']:.3f}, fg {record['fg_accuracy']:.1%}, "
                    f"bg {record['bg_accuracy']:.1%}, {record['rois_per_s']:,.0f} RoIs/s"
                )
            if keep and done < config.steps and is_main_process():
                save_checkpoint(out, done, head, optimizer, scaler, identity)
            if stop and done < config.steps:
                if keeps_files:
                    command = "the same command" + " without --overwrite" * config.overwrite
                    bar.write(f"{out}: stopped after step {done}; {command} resumes", file=sys.stderr)
                raise KeyboardInterrupt

    head.eval()
    if keeps_files:
        save_head(head, out)
        remove_checkpoint(out)
    return head


def train_head(cache: RoICache | str | Path, **options) -> Head:
    """Trains a head on a cache or the cache at a path; `options` are the fields of `calib.Config`.

    Without `out` nothing is written. Raises as `train` does.
    """
    if isinstance(cache, str | Path):
        from extract import open_cache

        cache = open_cache(cache)
    return train(cache, Config(**{"out": "", **options, "cache": cache.url}))


def main(config: Config) -> None:
    """The command: trains, and says on stdout where the head is."""
    from extract import open_cache

    if not config.out:
        raise ValueError("out is empty, expected a folder")
    if not is_main_process():
        logging.disable(logging.WARNING)  # the first process says it
    head = train(open_cache(config.cache), config)
    if not is_main_process():
        return
    parameters = sum(p.numel() for p in head.parameters())
    print(
        f"{config.out}: head {head.name}, {len(head.stages)} stage(s), {head.num_classes:,} classes, "
        f"{parameters:,} parameters, {config.steps:,} steps, finished"
    )


@contextmanager
def _deferred_interrupt() -> Iterator[threading.Event]:
    """Ctrl-C and SIGTERM set the event, so that no step is cut in half; a second one interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def remember(signum: int, frame: object) -> None:
        # torchrun repeats a signal that has come to the processes already, and ends them itself if they take too long.
        if event.is_set() and world_size() == 1:
            raise KeyboardInterrupt
        event.set()

    previous = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _explain(cache: RoICache, config: Config, sampler: BiLevelSampler, features: Features, steps: range) -> None:
    """Raises the ValueError for a loss that is not finite, naming the RoI at fault if it is one."""
    stages, none = range(len(cache.stages)), int(cache.offsets[-1])
    for step in steps:
        drawn = [sampler.step(step, stage).rows for stage in stages]
        own = [rows[features.is_own(rows)] for rows in drawn]
        for stage, halves in enumerate(features.fetch(own)):
            bad = own[stage][~torch.isfinite(halves).all(1).cpu().numpy()]
            row = all_reduce_min(int(bad.min(initial=none)), halves.device)
            if row < none:
                image = int(np.searchsorted(cache.offsets, row, side="right")) - 1
                raise ValueError(
                    f"{cache.url}: image {cache.images['image_id'].iloc[image]}: features of RoI "
                    f"{row - cache.offsets[image]} (row {row}), stage {stage}, are not finite"
                )
    raise ValueError(
        f"the loss is not finite between steps {steps.start} and {steps.stop}, though the features are: "
        f"lower lr (now {config.lr:g})"
    )
