"""`python -m fuse select`: every method on held-out training images, the chosen ones on val."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import msgspec

from calib.scoring import Original, Scorer
from extract.cache.opening import open_cache
from extract.cache.reader import RoICache
from extract.holdout import training_part
from extract.utils.files import write_bytes
from fuse.commands.datasets import resolve_annotations
from fuse.commands.folder import only_writer, resumable_results
from fuse.commands.inputs import load_annotations_of, open_val_cache, resolve_iou_types, resolve_protocol
from fuse.commands.manifest import new_manifest
from fuse.commands.outputs import Comparison, ReportSource, write_results
from fuse.commands.report_inputs import weight_norms
from fuse.commands.select_config import SelectConfig
from fuse.config import FusionConfig
from fuse.evaluation.dataset import EvaluationDataset
from fuse.evaluation.row_comparison import RowComparison
from fuse.gallery import image_reader
from fuse.learned import LearnedFusion
from fuse.learned_io import save_learned
from fuse.selection.choice import Selection, choose
from fuse.selection.grids import POSTHOC, TRAINED, Row, Setting, rows_of, settings_of
from fuse.selection.learned import fit_learned
from fuse.selection.scorers import check_caches, head_folder, make_scorer, served_methods
from fuse.selection.trial import evaluate_on

_LOG = logging.getLogger(__name__)
SELECTION_FILE, HEADS_FOLDER, TRIAL_FOLDER, LEARNED_FOLDER = "selection.json", "heads", "trial_heads", "learned"
"""What is written besides the tables: the record, heads trained on all images and without those held out, and the
learned fusion."""
PARTS = (SELECTION_FILE, HEADS_FOLDER, TRIAL_FOLDER, LEARNED_FOLDER)
ORIGINAL, LEARNED = Setting("original", {}, ""), Setting("learned", {}, "")
"""Rows of the table on val besides the chosen ones."""
LEARNED_HEADS = 2
"""Trained heads that learned fusion combines with the original scores."""


class _Inputs(NamedTuple):
    """The caches, and the annotations of the images of val and holdout."""

    val: RoICache
    train: RoICache
    holdout: RoICache
    annotations: EvaluationDataset
    held_out: EvaluationDataset
    scope: str


def select(config: SelectConfig) -> RowComparison:
    """Runs the command; returns the table on val."""
    with ExitStack() as lock:
        return _select(config, lock)


def _select(config: SelectConfig, lock: ExitStack) -> RowComparison:
    """Selects as `select` does; takes the lock of the folder once its inputs have proved readable."""
    config = resolve_annotations(config)
    inputs = _open(config)
    has_masks = all("masks" in cache.fields for cache in (inputs.val, inputs.holdout)) and config.masks == "auto"
    config = resolve_protocol(resolve_iou_types(config, has_masks, inputs.annotations), inputs.annotations)
    fingerprints = {f"{name}_fingerprint": getattr(inputs, name).fingerprint for name in ("train", "holdout")}
    lock.enter_context(only_writer(config.out))
    manifest = new_manifest(config, cache_fingerprint=inputs.val.fingerprint, **fingerprints)
    methods = served_methods(inputs.train, config.methods or (*TRAINED, *POSTHOC))
    if not methods:
        raise ValueError(f"{inputs.train.url}: level {inputs.train.level!r} serves none of these methods")
    settings = settings_of(methods, config.steps)
    with resumable_results(config.out, manifest, PARTS, config.overwrite) as out:
        trial_scorers = _scorers(settings, training_part(inputs.train, inputs.holdout), out / TRIAL_FOLDER, config)
        selection = _choose(config, inputs, settings, trial_scorers)
        _LOG.info("%s", selection.describe(len(inputs.holdout)))
        learned = _learn(config, inputs, selection, trial_scorers)
        tables, source = _compare(config, inputs, selection, learned, out)
        record = _record(inputs, selection, learned)
        write_bytes(out / SELECTION_FILE, msgspec.json.format(msgspec.json.encode(record)))
        comparison = Comparison("original", selection.chosen[selection.winner].name)
        follows = "the command below, which detects with the best row"
        write_results(config, manifest, tables, inputs.scope, comparison, source, follows, folder=out)
    if learned:
        options = {"mode": "calibrated", "head": config.out / LEARNED_FOLDER}
        print(f"\nThe row learned is fitted to these images as well\n{_command(config, options)}")
    print(f"\n{selection.describe(len(inputs.holdout))}\n{_usage(config, selection.chosen[selection.winner])}")
    return tables


def _open(config: SelectConfig) -> _Inputs:
    """Opens and checks all inputs, before anything is computed."""
    val, train, holdout = open_val_cache(config.cache), open_cache(config.train), open_val_cache(config.holdout)
    if train.split != "train":
        raise ValueError(f"{train.url}: is a {train.split} cache, expected one extracted with --split train")
    check_caches(train, (val, holdout))
    training_part(train, holdout)
    annotations, scope = load_annotations_of(config.annotations, val, config.strict)
    held_out, _ = load_annotations_of(config.train_annotations, holdout, config.strict)
    if not annotations["annotations"]:
        raise ValueError(f"{config.annotations}: has no annotations, so nothing can be evaluated")
    return _Inputs(val, train, holdout, annotations, held_out, scope)


def _choose(
    config: SelectConfig, inputs: _Inputs, settings: Sequence[Setting], scorers: Mapping[str, Scorer]
) -> Selection:
    """Tries all rows on the held-out images, with scorers that were not fitted to these."""
    fusion, activation = _fusion(config), Original.from_description(inputs.train.detector).activation
    rows = [row for setting in settings for row in rows_of(setting, fusion, config.bins, activation)]
    # Which of several IoU types decides is the user's order.
    deciding = replace(config, iou_types=config.iou_types[:1])
    tables, _ = evaluate_on(inputs.holdout, rows, scorers, inputs.held_out, deciding)
    return choose(rows, tables.summary.loc[deciding.iou_types[0]])


class _Learned(NamedTuple):
    """The settings whose heads learned fusion combines with the original scores, and the fusion."""

    settings: list[Setting]
    fusion: LearnedFusion


def _learn(
    config: SelectConfig, inputs: _Inputs, selection: Selection, scorers: Mapping[str, Scorer]
) -> _Learned | None:
    """Fits learned fusion of the original scores and the best trained heads to the held-out images."""
    settings = [row.setting for row in selection.ranked() if row.setting.is_trained][:LEARNED_HEADS]
    if not settings:
        return None
    chosen = [Original.from_description(inputs.holdout.detector), *(scorers[one.name] for one in settings)]
    protocol = str(config.protocol)
    return _Learned(settings, fit_learned(inputs.holdout, inputs.held_out, chosen, protocol))


def _compare(
    config: SelectConfig, inputs: _Inputs, selection: Selection, learned: _Learned | None, out: Path
) -> tuple[RowComparison, ReportSource]:
    """Fits the chosen settings to all training images and evaluates them on val, beside the original detector.

    Writes heads and the learned fusion to `out`.
    """
    read_image = image_reader(inputs.annotations, config.images, inputs.val.images["image_id"])
    rows, winner = selection.ranked(), selection.chosen[selection.winner]
    scorers = _scorers([row.setting for row in rows], inputs.train, out / HEADS_FOLDER, config)
    original = Row(ORIGINAL, "", _fusion(config).fusion(mode="original"))
    scorers[ORIGINAL.name] = Original.from_description(inputs.val.detector)
    if learned:
        own = scorers[ORIGINAL.name], *(scorers[one.name] for one in learned.settings)
        fusion = replace(learned.fusion, scorers=own)
        save_learned(fusion, out / LEARNED_FOLDER)
        scorers[LEARNED.name] = fusion
        rows.append(Row(LEARNED, "", _fusion(config).fusion(mode="calibrated")))
    keep = original.name, winner.name
    tables, kept = evaluate_on(
        inputs.val, [original, *rows], scorers, inputs.annotations, config, samples=config.bootstrap, keep=keep
    )
    norms = weight_norms(inputs.val, scorers[winner.setting.name])
    return tables, ReportSource(inputs.annotations, inputs.val.classes, kept, read_image, norms)


def _scorers(settings: Sequence[Setting], cache: RoICache, heads: Path, config: SelectConfig) -> dict[str, Scorer]:
    return {one.name: make_scorer(one, cache, heads, config.seed) for one in settings}


def _fusion(config: SelectConfig) -> FusionConfig:
    return FusionConfig(max_detections=config.max_detections)


def _record(inputs: _Inputs, selection: Selection, learned: _Learned | None) -> dict[str, object]:
    """Returns the content of `SELECTION_FILE`."""
    held_out = {"images": len(inputs.holdout), "fingerprint": inputs.holdout.fingerprint}
    note = (
        "The detector was trained on the held-out images. Its own scores, and those of heads that start from its "
        "classifier, are better there than on new images: compare the settings of one method by these figures, and "
        "methods with one another by the table on val."
    )
    names = ["original", *(one.name for one in learned.settings), "objectness", "constant"] if learned else []
    weights = dict(zip(names, learned.fusion.weights.tolist(), strict=True)) if learned else {}
    return {"held_out": held_out, "note": note, **selection.record(), "learned": weights}


def _usage(config: SelectConfig, row: Row) -> str:
    """Returns the command that detects with a row."""
    options: dict[str, object] = {"mode": row.fusion.mode, "tail": row.fusion.tail}
    if row.setting.is_trained:
        options |= {"head": head_folder(row.setting, config.out / HEADS_FOLDER)}
    else:
        options |= {"method": row.setting.method, **row.setting.options, "fit_cache": config.train}
    return _command(config, options)


def _command(config: SelectConfig, options: Mapping[str, object]) -> str:
    """Returns the command that detects with these options."""
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items())
    return f"python -m fuse --cache {config.cache} --annotations {config.annotations} --out runs/chosen {flags}"
