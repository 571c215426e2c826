"""detectron2's configs, .yaml and LazyConfig .py: the model, weights and input that they name, and its data catalog.

A model whose inference is not what the adapter takes apart is refused here.
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
from typing import NamedTuple

import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads, StandardROIHeads
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from extract.config import DetectorSpec
from extract.detectors.base import import_function
from extract.detectors.weights import load_weights
from extract.utils.devices import resolve_device

ROI_HEADS = (CascadeROIHeads, StandardROIHeads, Res5ROIHeads)
INFERENCE = {
    GeneralizedRCNN: ("inference",),
    CascadeROIHeads: ("_forward_box", "_run_stage"),
    StandardROIHeads: ("_forward_box",),
    Res5ROIHeads: ("forward",),
}
"""What the adapter takes apart: a derived class must not have changed it. How it trains is its own affair."""
UNDECIDING = ("WEIGHTS", "DEVICE", "CALIBRATION")
"""Keys of MODEL that do not decide what the model does; `fuse.plugins.detectron2` adds the last to every config."""
LAZY_SIZE, LAZY_FORMAT = (800, 1333), "BGR"
"""For a LazyConfig that says nothing of its input (`dataloader.test.mapper`): what the model zoo's have."""


class Built(NamedTuple):
    """A model as its config has it; `decisive` is the part of the config that decides what the model does."""

    model: nn.Module
    weights: str
    resize: ResizeShortestEdge
    image_format: str
    decisive: dict


def build(target: str, spec: DetectorSpec) -> tuple[Built, dict[str, str]]:
    """The model with its weights on its device, and the sha256 of weights and config; see the adapter's `load`."""
    if spec.config_file is None:
        raise ValueError("detector detectron2: give its --config-file, a .yaml or a LazyConfig .py")
    if not spec.config_file.is_file():
        raise FileNotFoundError(f"{spec.config_file}: no such config file")
    extend = project(target)
    device = resolve_device(spec.device)
    with errors_of(spec.config_file):
        lazy = spec.config_file.suffix == ".py"
        built = _build_lazy(spec) if lazy else _build_yaml(spec, extend, str(device))
        check(built.model)
    sha256 = {"weights_sha256": load_weights(built.model, _weights_file(spec, built.weights))}
    with errors_of(spec.config_file):
        sha256["config_sha256"] = _digest(built)
        built.model.to(device)
    return built, sha256


def project(target: str) -> Callable[[CfgNode], None]:
    """The function at MODULE:FUNCTION that adds a project's own keys to a config; without one nothing is added."""
    return import_function(target, "detector project") if target else lambda cfg: None


def read_yaml(spec: DetectorSpec, extend: Callable) -> CfgNode:
    """The config of a .yaml file, options and `extend(cfg)` included."""
    cfg = get_cfg()
    extend(cfg)
    cfg.merge_from_file(str(spec.config_file))
    cfg.merge_from_list(list(spec.detector_options))
    return cfg


def _build_yaml(spec: DetectorSpec, extend: Callable, device: str) -> Built:
    cfg = read_yaml(spec, extend)
    cfg.MODEL.DEVICE = device
    resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    decisive = {key: value for key, value in cfg.MODEL.items() if key not in UNDECIDING}
    return Built(build_model(cfg), cfg.MODEL.WEIGHTS, resize, cfg.INPUT.FORMAT, decisive)


def _build_lazy(spec: DetectorSpec) -> Built:
    ordinary = builtins.__import__
    try:
        cfg = LazyConfig.load(str(spec.config_file))
    finally:
        builtins.__import__ = ordinary  # a config that fails leaves detectron2's own in its place
    for key in ("model", *(re.split(r"[.=]", option.lstrip("+"))[0] for option in spec.detector_options)):
        if key not in cfg:
            raise ValueError(f"has no {key!r}, only {', '.join(map(str, cfg))}")
    LazyConfig.apply_overrides(cfg, list(spec.detector_options))
    mapper = OmegaConf.select(cfg, "dataloader.test.mapper") or DictConfig({})
    augmentations = instantiate(mapper.get("augmentations")) or [ResizeShortestEdge(LAZY_SIZE[0], LAZY_SIZE[1])]
    if [type(a) for a in augmentations] != [ResizeShortestEdge]:
        names = [type(a).__name__ for a in augmentations]
        raise ValueError(f"dataloader.test.mapper.augmentations are {names}, expected one ResizeShortestEdge")
    image_format = mapper.get("image_format") or cfg.model.get("input_format") or LAZY_FORMAT
    weights = OmegaConf.select(cfg, "train.init_checkpoint") or ""
    decisive = OmegaConf.to_container(cfg.model, resolve=True)
    return Built(instantiate(cfg.model), weights, augmentations[0], image_format, decisive)


@contextmanager
def errors_of(config_file: Path) -> Iterator[None]:
    """Whatever a config makes fail becomes a ValueError of one line that names the file."""
    try:
        yield
    except Exception as error:  # configs run code and build classes of any kind
        text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        # A bare assertion says nothing, the code that failed does.
        reason = " ".join(text.split()) or traceback.extract_tb(error.__traceback__)[-1].line
        raise ValueError(f"{config_file}: {reason}") from error


def check(model: nn.Module) -> None:
    """Raises ValueError naming the class that is not known, or that detects in a way of its own."""
    if not _infers_as(model, GeneralizedRCNN):
        raise ValueError(f"model is a {type(model).__name__}, expected a GeneralizedRCNN with its own inference")
    if model.proposal_generator is None:
        raise ValueError("model has no proposal_generator, expected one such as RPN")
    if not any(_infers_as(model.roi_heads, known) for known in ROI_HEADS):
        known = ", ".join(f"{k.__name__} with its own {' and '.join(INFERENCE[k])}" for k in ROI_HEADS)
        raise ValueError(f"RoI heads are {type(model.roi_heads).__name__}, expected {known}")


def _infers_as(module: nn.Module, known: type) -> bool:
    kind = type(module)
    return issubclass(kind, known) and all(getattr(kind, name) is getattr(known, name) for name in INFERENCE[known])


def _weights_file(spec: DetectorSpec, default: str) -> Path:
    weights = str(spec.weights or default)
    if not weights:
        raise ValueError(f"{spec.config_file}: names no weights (MODEL.WEIGHTS, train.init_checkpoint): give --weights")
    if re.match(r"\w\w+:/", weights):
        raise ValueError(f"{spec.config_file}: weights {weights}, expected a local file: download it, give --weights")
    return Path(weights)


def _digest(built: Built) -> str:
    """sha256 of what decides the outcome besides the weights; classes and functions of a LazyConfig by their names."""

    def name_of(value: object) -> str:
        name = getattr(value, "__qualname__", None)
        return f"{value.__module__}.{name}" if name else re.sub(r" at 0x\w+", "", repr(value))

    size = (list(built.resize.short_edge_length), built.resize.max_size)
    text = json.dumps([built.decisive, built.image_format, size], sort_keys=True, default=name_of)
    return hashlib.sha256(text.encode()).hexdigest()


def is_c4(heads: nn.Module) -> bool:
    """Whether these are C4 heads, which have no fully connected layers."""
    return isinstance(heads, Res5ROIHeads)


def stages_of(heads: nn.Module) -> tuple[list[tuple[nn.Module, nn.Module]], list]:
    """Box head and predictor of each stage, and the matchers with their IoUs."""
    if isinstance(heads, CascadeROIHeads):
        return list(zip(heads.box_head, heads.box_predictor, strict=True)), heads.proposal_matchers
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()) if is_c4(heads) else heads.box_head
    return [(head, heads.box_predictor)], [heads.proposal_matcher]


def activation(logits: Tensor, scores: Tensor) -> str:
    """What turns the logits into the scores of the predictor; background's score is not used."""
    for name, activate in {"softmax": lambda z: z.softmax(1), "sigmoid": Tensor.sigmoid}.items():
        if torch.allclose(activate(logits)[:, :-1], scores[:, :-1], rtol=1e-3, atol=1e-12):
            return name
    raise ValueError("scores of the box predictor are neither softmax nor sigmoid of its logits")


def registered_dataset(target: str, name: str) -> tuple[Path, Path] | None:
    """Annotation file and image folder of a data set in detectron2's catalog, which `target`'s module may add to."""
    if target:
        import_function(target, "detector project")
    if name not in DatasetCatalog.list():
        return None
    metadata = MetadataCatalog.get(name).as_dict()
    if not {"json_file", "image_root"} <= metadata.keys():
        raise ValueError(f"data set {name!r} of detectron2's catalog has no json_file and image_root: give its files")
    return Path(metadata["json_file"]), Path(metadata["image_root"])
