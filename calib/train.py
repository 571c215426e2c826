"""Trains new classification heads on a train cache: one head per stage, all stages in one run.

    python -m calib.train --cache train.zarr --out head          # as in the paper: 3fc_ft, 12,000 steps
    python -m calib.train --cache train.zarr --out head --head-type linear --steps 3000
    python -m calib.train --cache train.zarr --out head --precision bf16 --device cuda:1
    torchrun --nproc-per-node 8 -m calib.train --cache train.zarr --out head     # the same head, from 8 GPUs

The same command again resumes, `--overwrite` starts anew, `--help` lists all options. In a notebook:

    head = calib.train_head("train.zarr", head_type="2fc_rand", steps=1000)

Method: Wang et al., "Classification Calibration for Long-tail Instance Segmentation" (2019): softmax cross-entropy over
K+1 classes on bi-level samples, SGD with learning rate 0.01, divided by 10 at 8/12 and 11/12 of the run.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # before the imports below, so that --help does not import torch
    from calib.__main__ import TRAIN
    from extract.utils import cli

    sys.exit(cli.run("python -m calib.train", {"": TRAIN}))

import logging
import math
import os
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from calib.checkpoint import (
    discard_other,
    holds_finished,
    is_finished,
    prepare_folder,
    remove_checkpoint,
    writing_folder,
)
from calib.choice import choose_head_type, resolve_auto, stored_choice
from calib.config import Config
from calib.due import any_interrupted, due_after
from calib.features import Features
from calib.head_io import load_head, settle_head, write_head
from calib.head_types import build_head
from calib.heads import Head
from calib.held_out import HeldOutRoIs, held_out_rois
from calib.interrupt import deferred_interrupt
from calib.loader import batches
from calib.losses import adapt_head, build_loss
from calib.memory_plan import memory_for_features
from calib.metrics import MetricsLog, Tally
from calib.not_finite import raise_not_finite
from calib.sampler import BiLevelSampler
from calib.train_state import TrainState
from calib.train_step import train_step
from extract.cache.opening import open_cache
from extract.holdout import training_part
from extract.utils.devices import resolve_device
from extract.utils.distributed import any_process, barrier, is_main_process, process_group
from extract.utils.folders import put_in_place
from extract.utils.locks import one_writer
from extract.utils.progress import progress_bar

if TYPE_CHECKING:
    from extract import RoICache

logger = logging.getLogger(__name__)
ROWS_AT_ONCE = 256
"""Rows of features read at a time where memory is limited."""


def train(cache: RoICache, config: Config) -> Head:
    """Trains a head, resuming the run in `config.out`; with an empty `out` nothing is written.

    Under torchrun each process trains on its share of every step's RoIs, and all return the same head. Only the main
    process writes files.

    Raises:
        ValueError: the cache is not a train cache or does not suit the head type, `out` holds a run of another
            configuration, or a value is not finite.
        KeyboardInterrupt: Ctrl-C or SIGTERM; `config.out` then holds a checkpoint of the last completed step.
    """
    if cache.split != "train":
        raise ValueError(
            f"{cache.url}: is a cache of split {cache.split!r}, a head is trained on one extracted with --split train"
        )
    held_out = open_cache(config.holdout) if config.holdout is not None else None
    if held_out is not None:
        cache = training_part(cache, held_out)
    device = resolve_device(config.device)
    with one_writer(config.out) if config.out else nullcontext(), process_group(device):
        return _train(cache, held_out, config, device)


def _train(cache: RoICache, held_out: RoICache | None, config: Config, device: torch.device) -> Head:
    config = resolve_auto(config, cache)
    final, identity = Path(config.out), config.identity(cache.fingerprint)
    writes_files = bool(config.out) and is_main_process()
    if config.out and _is_done(final, identity, config, device):
        if writes_files:
            remove_checkpoint(final)  # is left by a process that was killed right after it had saved the head
        logger.info("%s: is finished already", final)
        return load_head(final, device)
    out = writing_folder(final, config.overwrite)
    if config.overwrite and writes_files:
        discard_other(final, identity)
    config = replace(config, out=str(out) if config.out else "")
    barrier()

    # What can fail comes first: --overwrite keeps the old head until training begins.
    features: Features | None = None
    head_type, choice = config.head_type, None
    if head_type == "auto":
        features = _load_features(cache, config, device)
        choice = (stored_choice(out) if config.out else None) or choose_head_type(cache, config, features)
        head_type = choice.head_type
    loss = build_loss(config.loss, cache.classes, config.seed)
    head = build_head(cache, head_type, config.hidden, config.seed, identity, config.freeze_layers)
    head = adapt_head(head, loss).to(device)
    head.info = replace(head.info, choice=asdict(choice) if choice else {})
    sampler = BiLevelSampler(
        cache,
        config.classes_per_step,
        config.images_per_class,
        config.seed,
        config.rois_per_class,
        sampling=config.sampling,
        steps=config.steps,
    )
    features = features or _load_features(cache, config, device)
    watched = held_out_rois(held_out, head, config.seed) if held_out is not None and is_main_process() else None
    if writes_files:
        prepare_folder(out)
    barrier()
    state = TrainState.load_or_init(head, loss.to(device), config, device)

    _run_steps(state, cache, config, sampler, features, watched)

    head.eval()
    if writes_files:
        write_head(head, out)
        remove_checkpoint(out)
        if config.overwrite:
            put_in_place(out, Path(os.path.realpath(final)))
    return head


def _load_features(cache: RoICache, config: Config, device: torch.device) -> Features:
    """Returns the features, in memory if they fit there within `memory_limit`."""
    memory = memory_for_features(cache, config)
    if memory is None:
        return Features(cache, device)
    return Features(cache, device, memory, ROWS_AT_ONCE)


def _is_done(out: Path, identity: dict[str, Any], config: Config, device: torch.device) -> bool:
    """Returns whether `out` holds the head already; with `overwrite`, whether this command has finished it before.

    Raises:
        ValueError: the folder holds other files, or without `overwrite` a run of another configuration.
    """
    settled = any_process(settle_head(Path(os.path.realpath(out))) if is_main_process() else False, device)
    if config.overwrite:
        return settled and holds_finished(out, identity)
    return is_finished(out, identity)


def _run_steps(
    state: TrainState,
    cache: RoICache,
    config: Config,
    sampler: BiLevelSampler,
    features: Features,
    watched: HeldOutRoIs | None,
) -> None:
    """Runs the remaining steps; writes metrics, of held-out images as well if there are some, and checkpoints."""
    out, is_main = config.out, is_main_process()
    tally, logged = Tally(features.device), state.step
    with (
        deferred_interrupt() as interrupted,
        closing(MetricsLog(out if is_main else "", state.step)) as log,
        closing(batches(sampler, features, len(cache.stages), range(state.step, config.steps))) as loader,
        progress_bar(
            total=config.steps,
            initial=state.step,
            unit="step",
            desc=f"train {state.head.name}",
            shown=is_main,
        ) as bar,
    ):
        if state.step == 0 and state.head.info.choice:
            log.write_choice(state.head.info.choice)
        for batch in loader:
            train_step(state, batch, config, tally)
            bar.update()
            stop = any_interrupted(interrupted.is_set(), state.step, features.device)
            due = due_after(state.step, config, stop)
            if due.log:
                record = tally.take(state.step, config.lr_at(state.step))
                if not math.isfinite(record.loss):
                    raise_not_finite(cache, sampler, features, range(logged, state.step), config.lr)
                log.write(record)
                if due.evaluate and watched is not None:
                    log.write_held_out(state.step, watched.evaluate(state.head))
                bar.set_postfix_str(record.summary() + log.held_out_summary())
                logged = state.step
            if due.save and is_main:
                state.save(Path(out))
            if due.stop:
                if out and is_main:
                    bar.write(f"{out}: stopped after step {state.step}; the same command resumes", file=sys.stderr)
                raise KeyboardInterrupt


def train_head(cache: RoICache | str | Path, **options: Any) -> Head:
    """Trains a head on a cache, or on the cache at a path or URL; `options` are fields of `calib.Config`.

    Without `out` nothing is written. Raises as `train` does.
    """
    if isinstance(cache, str | Path):
        cache = open_cache(str(cache))
    return train(cache, Config(**{"out": "", **options, "cache": cache.url}))


def main(config: Config) -> None:
    """Runs the command: trains, and prints where the head is."""
    if not config.out:
        raise ValueError("out is empty, expected a folder")
    if not is_main_process():
        logging.disable(logging.WARNING)  # the main process logs the same messages
    head = train(open_cache(config.cache), config)
    if not is_main_process():
        return
    parameters = sum(p.numel() for p in head.parameters())
    print(
        f"{config.out}: head {head.name}, {len(head.stages)} stage(s), {head.num_classes:,} classes, "
        f"{parameters:,} parameters, {config.steps:,} steps, finished"
    )
    logger.info("next: python -m fuse --cache val.zarr --head %s --annotations val.json --out runs/cat", config.out)
