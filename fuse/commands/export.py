"""Exports a calibrated detector: to its framework, as a torch program, or folded into a stock checkpoint."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from calib.deployment import on_pooled_features
from calib.heads import Head
from calib.posthoc import Posthoc
from calib.scoring import with_stage_average
from extract.detectors import import_adapter, load_detector
from extract.detectors.base import Detector
from extract.detectors.class_map import map_detector
from extract.detectors.weights import tensors_sha256
from extract.rois import SCORES_WITH_OBJECTNESS
from extract.utils.files import file_sha256, remove_partials, replacing, write_bytes
from extract.utils.locks import one_writer
from extract.utils.progress import progress_bar
from fuse.commands.inputs import load_live_classifier, warn_of_tail
from fuse.commands.live_config import ExportConfig
from fuse.commands.next_steps import after_export
from fuse.export.checksums import write_sums
from fuse.export.classes import OutputClasses, output_classes
from fuse.export.folding import folded_classifiers
from fuse.export.own_order import OwnOrderScores
from fuse.export.program import described_shape, save_program
from fuse.learned import LearnedFusion
from fuse.plugins import WEIGHTS_FILE, Calibration
from fuse.scores import tail_classes

_LOG = logging.getLogger(__name__)
S = TypeVar("S")
PROGRAM_FILE = "scores.pt2"
CLASSES_FILE = "classes.json"
"""Label, category id and name of each class that an exported detector finds."""


def export(config: ExportConfig) -> None:
    """Writes what `ExportConfig` describes.

    The framework's config is written last, so that an interrupted export has none and can be repeated.

    Raises ValueError if the head belongs to another detector, if `out` holds an export already, or if a head cannot
    be folded; InUseError if another process is exporting there.
    """
    with ExitStack() as lock:
        _export(config, lock)
    _LOG.info("%s has the class of each label", config.out / CLASSES_FILE)
    _LOG.info("next: %s", after_export(config))


def _export(config: ExportConfig, lock: ExitStack) -> None:
    """Exports as `export` does; takes the lock of the folder once detector and classifier have proved readable."""
    weights, program = config.out / WEIGHTS_FILE, config.out / PROGRAM_FILE
    if weights.exists() and (config.fold or not program.exists()):  # without a program it is not of this command
        with one_writer(config.out):  # and removes the lock of a process that was killed at its end
            raise ValueError(f"{weights}: exists; give another folder")
    if not config.fold:
        _check_config(config)
    steps = lock.enter_context(progress_bar(total=2 if config.fold else 3, desc="export", unit="step"))
    detector = load_detector(config)
    scorer = load_live_classifier(config, detector).scorer
    warn_of_tail(config, scorer.instance_counts)
    lock.enter_context(one_writer(config.out))
    remove_partials(config.out)
    steps.update()
    tail_mask = tail_classes(np.array(scorer.instance_counts), config.tail)
    if config.fold:
        if isinstance(scorer, LearnedFusion):
            raise ValueError(
                f"head is {config.head}, a learned fusion, of which a classifier has no rows: leave out --fold"
            )
        export_folded(detector, scorer, weights, None if config.mode == "calibrated" else tail_mask)
        steps.update()
        _LOG.info("%s loads with the detector's own config", weights)
        return
    if isinstance(scorer, Head | LearnedFusion):
        with_stage_average(scorer, config.stage_average)  # raises for learned fusion
        scorer.check_detector(detector)
        scorer = _on_pooled_features(scorer, detector)
    plugin = _plugin(detector)
    config_file = config.out / plugin.CONFIG
    if config_file.exists():
        raise ValueError(f"{config_file}: exists; give another folder")
    classes = output_classes(detector, scorer)
    calibration = Calibration.from_scorer(scorer, detector.description, config.fusion(), classes)
    scores = calibration.module().eval().requires_grad_(False)
    scores.load_scorer(scorer, tail_mask)
    model: nn.Module = detector.model  # type: ignore[attr-defined]  # adapters whose framework has a plugin have one
    state = {f"calibration.{name}": value for name, value in scores.state_dict().items()}
    state = {name: value.cpu() for name, value in {**model.state_dict(), **state}.items()}
    calibration = replace(calibration, tensors_sha256=tensors_sha256(state))
    content = plugin.config_content(config, calibration, config.out)
    in_own_order = OwnOrderScores(scores, scorer.class_map) if scorer.class_map else scores
    save_program(in_own_order, _feature_shape(scorer), program)
    steps.update()
    sums = {PROGRAM_FILE: file_sha256(program), plugin.CONFIG: hashlib.sha256(content).hexdigest()}
    _save(state, detector, classes, weights, sums)
    write_bytes(config_file, content)
    steps.update()
    print(f"{config.out} holds the calibrated detector. To load it:\n")
    print(plugin.loading_code(config, config.out, str(detector.device)))
    print(f"{program} is the classifier and the fusion alone, and needs torch only:\n")
    print(_program_code(scorer, detector, program))


def export_folded(
    detector: Detector, calibrated: Head | Posthoc, path: str | Path, tail_mask: np.ndarray | None = None
) -> None:
    """Writes `folded_classifiers` as a checkpoint that the detector's framework loads with its own config.

    The classes of its labels are listed in `CLASSES_FILE` beside it, and the sha256 of both in `SUMS_FILE`. Arguments
    and errors are those of `folded_classifiers`; `path` is replaced.
    """
    detector = map_detector(detector, calibrated.class_map)
    state = detector.state_dict_with_classifiers(folded_classifiers(detector, calibrated, tail_mask))
    state = {name: value.cpu() for name, value in state.items()}
    _save(state, detector, output_classes(detector, calibrated), Path(path), {})


def _on_pooled_features(scorer: Head | LearnedFusion, detector: Detector) -> Head | LearnedFusion:
    """Returns heads with the detector's first layer in them, corrected as they do, if their level is hidden."""
    if isinstance(scorer, LearnedFusion):
        return replace(scorer, scorers=tuple(_head_on_pooled_features(one, detector) for one in scorer.scorers))
    return _head_on_pooled_features(scorer, detector)


def _head_on_pooled_features(scorer: S, detector: Detector) -> S | Head:
    if not isinstance(scorer, Head) or scorer.level != "hidden":
        return scorer
    first_layers = [layers[0] for layers in detector.fc_layers("pooled")]
    return on_pooled_features(scorer, first_layers, first_layers[0][0].shape[1:])


def _feature_shape(scorer: Head | Posthoc | LearnedFusion) -> tuple[int, ...]:
    """Returns D, the shape of one RoI's features; a method reads no features and takes any."""
    if isinstance(scorer, LearnedFusion):
        return scorer.heads[0].info.feature_shape
    return scorer.info.feature_shape if isinstance(scorer, Head) else (1,)


def _program_code(scorer: Head | Posthoc | LearnedFusion, detector: Detector, program: Path) -> str:
    """Returns Python code that loads the program, checks the inputs and runs it.

    torch refuses other inputs as well, but names only the first size that differs.
    """
    stages, outputs = len(detector.stages), detector.num_classes + 1
    shapes = {"features": (stages, *_feature_shape(scorer)), "logits": (stages, outputs)}
    if isinstance(scorer, LearnedFusion) or detector.description.get(SCORES_WITH_OBJECTNESS):
        shapes["objectness"] = ()
    checks = "\n".join(
        f"torch._check({name}.dtype == torch.float32 and {name}.shape[1:] == {shape}, "
        f'lambda: f"{name} are {{{name}.dtype}} {{tuple({name}.shape)}}, expected float32 {described_shape(shape)}")'
        for name, shape in shapes.items()
    )
    return f"""\
import torch
from hashlib import sha256
from pathlib import Path
assert sha256(Path({str(program)!r}).read_bytes()).hexdigest() == {file_sha256(program)!r}, "damaged"
program = torch.export.load({str(program)!r}).module()
{checks}
scores = program({", ".join(shapes)})  # float32 {described_shape((outputs,))}, background last
"""


def _check_config(config: ExportConfig) -> None:
    """Raises ValueError, before any work, for a config that the framework's plugin cannot write."""
    import_adapter(config.detector)  # whose errors say what to install
    plugin = import_module(f"fuse.plugins.{config.detector.partition(':')[0]}")
    if hasattr(plugin, "check_config"):
        plugin.check_config(config)


def _plugin(detector: Detector) -> ModuleType:
    return import_module(f"fuse.plugins.{detector.description['framework']}")


def _save(
    state: Mapping[str, torch.Tensor], detector: Detector, classes: OutputClasses, path: Path, sums: Mapping[str, str]
) -> None:
    """Writes a checkpoint of the detector's framework; beside it the classes of its labels, and checksums.

    `sums` are the sha256 of the export's other files, by name.
    """
    plugin = _plugin(detector)
    names = classes.to_json(plugin.FIRST_LABEL)
    write_bytes(path.parent / CLASSES_FILE, names)
    with replacing(path) as partial:
        with partial.open("wb") as file:  # not by torch, which would store the partial file's name in it
            torch.save(plugin.checkpoint(state, detector, classes.names), file)
        own = {path.name: file_sha256(partial), CLASSES_FILE: hashlib.sha256(names).hexdigest()}
        write_sums(path.parent, {**own, **sums})
