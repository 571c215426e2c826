"""detectron2's configs (.yaml, LazyConfig .py) and dataset catalog: builds the model, finds its weights and input size.

Refuses models whose inference differs from the one that the adapter reproduces.
"""

from __future__ import annotations

import builtins
import hashlib
import json
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads, StandardROIHeads
from omegaconf import DictConfig, OmegaConf

from extract.config import DetectorSpec
from extract.detectors.detectron2_classes import lazy_datasets
from extract.detectors.detectron2_weights import convert_names
from extract.detectors.spec import import_function
from extract.detectors.weights import load_weights
from extract.utils.devices import resolve_device

ROI_HEADS = (CascadeROIHeads, StandardROIHeads, Res5ROIHeads)
INFERENCE_METHODS = {
    GeneralizedRCNN: ("inference",),
    CascadeROIHeads: ("_run_stage",),
    StandardROIHeads: (),
    Res5ROIHeads: (),
}
"""Methods that a subclass must not override. What other methods change, `detectron2_scoring` finds."""
EXCLUDED_KEYS = ("WEIGHTS", "DEVICE", "CALIBRATION")
"""Keys of MODEL that do not change its output; `fuse.plugins.detectron2` adds CALIBRATION to every config."""
LAZY_SIZE, LAZY_FORMAT = (800, 1333), "BGR"
"""Input of a LazyConfig without `dataloader.test.mapper`, as in the model zoo."""


class BuiltModel(NamedTuple):
    """A model without its trained weights, and what else its config defines."""

    model: GeneralizedRCNN
    weights: str
    resize: ResizeShortestEdge
    image_format: str
    model_config: dict[str, Any]
    """The part of the config that determines the model's output."""
    datasets: tuple[str, ...]
    """Names of the datasets that the config names, those for training first."""


def build(target: str, spec: DetectorSpec, config_file: Path) -> tuple[BuiltModel, dict[str, str]]:
    """Builds the model of the spec's config file with its weights, on its device; returns the files' sha256 as well.

    `target` is as in `extract.detectors.detectron2.load`. Raises ValueError or FileNotFoundError naming the file.
    """
    if not config_file.is_file():
        raise FileNotFoundError(f"{config_file}: no such config file")
    add_config = project_function(target)
    device = resolve_device(spec.device)
    with naming_errors(config_file):
        lazy = config_file.suffix == ".py"
        built = _build_lazy(spec) if lazy else _build_yaml(spec, add_config, str(device))
        _check(built.model)
    sha256 = load_weights(built.model, _weights_file(spec, built.weights), convert_names).identity
    with naming_errors(config_file):
        sha256["config_sha256"] = _config_sha256(built)
        built.model.to(device)
    return built, sha256


def project_function(target: str) -> Callable[[CfgNode], None]:
    """Returns the function at MODULE:FUNCTION that adds a project's keys to a config; for "", one that adds none."""
    return import_function(target, "detector project") if target else lambda cfg: None


def read_yaml(spec: DetectorSpec, add_config: Callable[[CfgNode], None]) -> CfgNode:
    """Reads the config of a .yaml file, with the keys of `add_config` and the options of the spec."""
    cfg = get_cfg()
    add_config(cfg)
    cfg.merge_from_file(str(spec.config_file))
    cfg.merge_from_list(list(spec.detector_options))
    return cfg


def _build_yaml(spec: DetectorSpec, add_config: Callable[[CfgNode], None], device: str) -> BuiltModel:
    cfg = read_yaml(spec, add_config)
    cfg.MODEL.DEVICE = device
    resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    model_config = {key: value for key, value in cfg.MODEL.items() if key not in EXCLUDED_KEYS}
    datasets = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    return BuiltModel(build_model(cfg), cfg.MODEL.WEIGHTS, resize, cfg.INPUT.FORMAT, model_config, datasets)


def read_lazy(spec: DetectorSpec) -> DictConfig:
    """Reads a LazyConfig .py, with the options of the spec. Raises ValueError for an option of a key it lacks."""
    original_import = builtins.__import__
    try:
        cfg = LazyConfig.load(str(spec.config_file))
    finally:
        builtins.__import__ = original_import  # detectron2 does not restore it when a config fails
    for key in ("model", *(re.split(r"[.=]", option.lstrip("+"))[0] for option in spec.detector_options)):
        if key not in cfg:
            raise ValueError(f"has no {key!r}, only {', '.join(map(str, cfg))}")
    return LazyConfig.apply_overrides(cfg, list(spec.detector_options))


def _build_lazy(spec: DetectorSpec) -> BuiltModel:
    cfg = read_lazy(spec)
    mapper = OmegaConf.select(cfg, "dataloader.test.mapper") or DictConfig({})
    augmentations = instantiate(mapper.get("augmentations")) or [ResizeShortestEdge(LAZY_SIZE[0], LAZY_SIZE[1])]
    if [type(a) for a in augmentations] != [ResizeShortestEdge]:
        names = [type(a).__name__ for a in augmentations]
        raise ValueError(f"dataloader.test.mapper.augmentations are {names}, expected one ResizeShortestEdge")
    image_format = mapper.get("image_format") or cfg.model.get("input_format") or LAZY_FORMAT
    weights = OmegaConf.select(cfg, "train.init_checkpoint") or ""
    model_config: Any = OmegaConf.to_container(cfg.model, resolve=True)
    model, datasets = instantiate(cfg.model), lazy_datasets(cfg)
    return BuiltModel(model, weights, augmentations[0], image_format, model_config, datasets)


@contextmanager
def naming_errors(config_file: Path) -> Iterator[None]:
    """Turns any exception within the block into a ValueError of one line that names the config file."""
    try:
        yield
    except Exception as error:  # configs run code and build classes of any kind
        text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        # An assertion without a message is described by its source line.
        reason = " ".join(text.split()) or traceback.extract_tb(error.__traceback__)[-1].line
        raise ValueError(f"{config_file}: {reason}") from error


def _check(model: GeneralizedRCNN) -> None:
    """Raises ValueError naming the class that is not supported or overrides methods of inference."""
    if not _keeps_inference(model, GeneralizedRCNN):
        raise ValueError(f"model is a {type(model).__name__}, expected a GeneralizedRCNN with its own inference")
    if model.proposal_generator is None:
        raise ValueError("model has no proposal_generator, expected one such as RPN")
    if not any(_keeps_inference(model.roi_heads, supported) for supported in ROI_HEADS):
        expected = " or ".join(heads.__name__ for heads in ROI_HEADS)
        name = type(model.roi_heads).__name__
        raise ValueError(f"RoI heads are {name}, expected {expected} with its own _run_stage")


def _keeps_inference(module: object, base: type) -> bool:
    cls = type(module)
    return issubclass(cls, base) and all(getattr(cls, m) is getattr(base, m) for m in INFERENCE_METHODS[base])


def _weights_file(spec: DetectorSpec, default: str) -> Path:
    """Returns the file of `spec.weights`, or the config's default."""
    weights = str(spec.weights or default)
    if not weights:
        raise ValueError(f"{spec.config_file}: names no weights (MODEL.WEIGHTS, train.init_checkpoint): give --weights")
    if re.match(r"\w\w+:/", weights):
        raise ValueError(f"{spec.config_file}: weights {weights}, expected a local file: download it, give --weights")
    return Path(weights)


def _config_sha256(built: BuiltModel) -> str:
    """Hashes what determines the output besides the weights; classes and functions of a LazyConfig by their names."""

    def name_of(value: object) -> str:
        name = getattr(value, "__qualname__", None)
        return f"{value.__module__}.{name}" if name else re.sub(r" at 0x\w+", "", repr(value))

    size = (list(built.resize.short_edge_length), built.resize.max_size)
    text = json.dumps([built.model_config, built.image_format, size], sort_keys=True, default=name_of)
    return hashlib.sha256(text.encode()).hexdigest()


def registered_dataset(target: str, name: str) -> tuple[Path, Path] | None:
    """Returns annotation file and image folder of a dataset in detectron2's catalog, None if it has none by that name.

    The module of `target`, MODULE:FUNCTION, is imported before; it may register datasets.
    """
    if target:
        import_function(target, "detector project")
    if name not in DatasetCatalog.list():
        return None
    metadata = MetadataCatalog.get(name).as_dict()
    if not {"json_file", "image_root"} <= metadata.keys():
        raise ValueError(f"dataset {name!r} of detectron2's catalog has no json_file and image_root: give its files")
    return Path(metadata["json_file"]), Path(metadata["image_root"])
