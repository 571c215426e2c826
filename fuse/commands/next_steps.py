"""The command that follows each command, as its last line names it; … stands for what only the user knows."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import replace

from extract.cache.reader import RoICache
from extract.config import DetectorSpec
from fuse.commands.config import DETECTIONS_FILE, CacheConfig
from fuse.commands.live_config import ExportConfig, LiveConfig, PredictConfig
from fuse.commands.predictions import PREDICTIONS_FILE
from fuse.commands.results_config import EvaluateConfig, MergeConfig
from fuse.config import FusionConfig
from fuse.scores import SCORE_MODES


def after_detection(config: CacheConfig, cache: RoICache) -> str:
    """Returns the command that draws what the classifier changes, or without a classifier the one that trains one."""
    if config.head is None and config.method is None:
        return "python -m calib.train --cache train.zarr --out head"
    if config.method is not None:
        config = replace(config, fit_cache=config.fit_cache or config.cache)
    if config.detector is not None:
        return _predict(config, _detector_flags(config), config.detector_options)
    options = cache.provenance.get("config", {}).get("detector_options", ())
    return _predict(config, _cached_detector_flags(cache), options)


def after_export(config: ExportConfig) -> str:
    """Returns the command that draws what the exported detector finds."""
    return _predict(config, _detector_flags(config), config.detector_options)


def after_prediction(config: PredictConfig) -> str:
    """Returns the command that evaluates the predictions, or without annotations the one that exports the detector."""
    if config.annotations is not None:
        files = [config.out / PREDICTIONS_FILE, "--annotations", config.annotations]
        return f"python -m fuse evaluate {_joined(files)} --train-annotations …"
    flags = [*_detector_flags(config), *_classifier_flags(config), "--out", "runs/calibrated"]
    return f"python -m fuse export {_joined([*flags, *config.detector_options])}"


def after_merge(config: MergeConfig) -> str:
    """Returns the command that shows where the errors of the merged results are."""
    file = config.out / DETECTIONS_FILE
    return f"python -m fuse evaluate {_joined([file, '--annotations', config.annotations, *_counts(config)])} --errors"


def after_evaluation(config: EvaluateConfig) -> str:
    """Returns the command that shows where the errors are, or after that what bounds AP."""
    if not config.errors:
        return "the same command with --errors, which says where the errors are"
    return f"python -m extract recall {config.cache or 'val.zarr'} --annotations {config.annotations}"


def _predict(config: CacheConfig | ExportConfig, detector: list[str], options: Iterable[str]) -> str:
    flags = [*detector, *_classifier_flags(config), "--save-images", "--images", "…", "--out", "runs/images"]
    return f"python -m fuse predict {_joined([*flags, *options])}"


def _detector_flags(spec: DetectorSpec) -> list[str]:
    flags = {"--detector": spec.detector, "--config-file": spec.config_file, "--weights": spec.weights}
    return [str(part) for flag, value in flags.items() if value is not None for part in (flag, value)]


def _cached_detector_flags(cache: RoICache) -> list[str]:
    """Returns the flags of the detector that a cache was extracted with; the cache does not keep names of files."""
    detector = str(cache.provenance.get("config", {}).get("detector", "…"))
    return ["--detector", detector, "--weights" if detector.startswith("torchvision") else "--config-file", "…"]


def _classifier_flags(config: CacheConfig | LiveConfig) -> list[str]:
    """Returns the flags of a head or a method, and those of mode and tail that are not the default."""
    options: dict[str, object] = {"head": config.head}
    if config.method is not None:
        options = {"method": config.method, **config.hyperparameters, "fit_cache": config.fit_cache}
    for name in ("mode", "tail"):
        value = getattr(config, name)
        if value != getattr(FusionConfig, name) and (name == "tail" or value in SCORE_MODES):
            options[name] = value
    return [str(part) for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]


def _counts(config: MergeConfig) -> list[object]:
    """Returns the flag that says where the training counts are from."""
    return ["--cache", config.cache] if config.cache is not None else ["--train-annotations", config.train_annotations]


def _joined(parts: Iterable[object]) -> str:
    return " ".join(part if part == "…" else shlex.quote(part) for part in map(str, parts))
