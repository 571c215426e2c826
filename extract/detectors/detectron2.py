"""detectron2's two-stage detectors: a `GeneralizedRCNN` with standard, cascade or C4 RoI heads.

The forward pass is detectron2's own, taken apart where proposals are chosen and where RoI features are pooled. Letters
in shapes: `r` RoIs of an image, `R` of the batch, `K` classes, `C` channels, `P` side of a pooled map.
"""

from __future__ import annotations

import builtins
import copy
import hashlib
import json
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import detectron2
import numpy as np
import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import GeneralizedRCNN, build_model, detector_postprocess
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads, StandardROIHeads
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from extract.config import DetectorSpec
from extract.detectors import Choose, Detected, Image, import_function
from extract.detectors.parts import (
    MASK_BATCH,
    choose_proposals,
    linear_layers,
    make_rois,
    proven,
    to_uint8,
    with_classifiers,
)
from extract.detectors.weights import load_weights
from extract.devices import resolve_device
from extract.layout import Layers
from extract.rois import RoIs

ROI_HEADS = (CascadeROIHeads, StandardROIHeads, Res5ROIHeads)
INFERENCE = {
    GeneralizedRCNN: ("inference",),
    CascadeROIHeads: ("_forward_box", "_run_stage"),
    StandardROIHeads: ("_forward_box",),
    Res5ROIHeads: ("forward",),
}
"""What is taken apart here: a derived class must not have changed it. How it trains is its own affair."""
LAZY_SIZE, LAZY_FORMAT = (800, 1333), "BGR"
"""For a LazyConfig that says nothing of its input (`dataloader.test.mapper`): what the model zoo's have."""


class _Built(NamedTuple):
    """A model as its config has it; `decisive` is the part of the config that decides what the model does."""

    model: nn.Module
    weights: str
    resize: ResizeShortestEdge
    image_format: str
    decisive: dict


class _Stage(NamedTuple):
    """What one stage of the box head sees and says: boxes of each image in resized pixels, the rest of the batch."""

    proposals: list[Tensor]  # each (r, 4)
    boxes: list[Tensor]  # refined and clipped, each (r, 4) or (r, K, 4)
    logits: Tensor  # (R, K+1), background last
    scores: Tensor  # (R, K+1)
    pooled: Tensor | None  # (R, C, P, P)
    embedding: Tensor | None  # (R, C)


def load(target: str, spec: DetectorSpec) -> Detectron2Detector:
    """Builds the model of `spec.config_file`, a .yaml or a LazyConfig .py, and loads its weights.

    `target` is "" or names a function that is called with the config before a .yaml is read; for a LazyConfig only its
    module is imported.
    """
    if spec.config_file is None:
        raise ValueError("detector detectron2: give its --config-file, a .yaml or a LazyConfig .py")
    if not spec.config_file.is_file():
        raise FileNotFoundError(f"{spec.config_file}: no such config file")
    extend = project(target)
    device = resolve_device(spec.device)
    with _errors_of(spec.config_file):
        lazy = spec.config_file.suffix == ".py"
        built = _build_lazy(spec) if lazy else _build_yaml(spec, extend, str(device))
        _check(built.model)
    sha256 = {"weights_sha256": load_weights(built.model, _weights_file(spec, built.weights))}
    with _errors_of(spec.config_file):
        sha256["config_sha256"] = _digest(built)
        return Detectron2Detector(
            built.model.to(device), built.resize, built.image_format, name=spec.config_file.stem, **sha256
        )


def registered_data(target: str, name: str) -> tuple[Path, Path] | None:
    """Annotation file and image folder of a data set in detectron2's catalog, which `target`'s module may add to."""
    if target:
        import_function(target, "detector project")
    if name not in DatasetCatalog.list():
        return None
    metadata = MetadataCatalog.get(name).as_dict()
    if not {"json_file", "image_root"} <= metadata.keys():
        raise ValueError(f"data set {name!r} of detectron2's catalog has no json_file and image_root: give its files")
    return Path(metadata["json_file"]), Path(metadata["image_root"])


class Detectron2Detector:
    """A frozen detectron2 detector; see `extract.detectors.Detector`.

    C4 heads have no fully connected layers: "pooled" is the map that res5 makes of a RoI, "embedding" its mean.
    """

    def __init__(
        self,
        model: GeneralizedRCNN,
        resize: ResizeShortestEdge,
        image_format: str = "BGR",
        name: str = "",
        **sha256: str,
    ):
        _check(model)
        if image_format not in ("BGR", "RGB"):
            raise ValueError(f"input format is {image_format!r}, expected 'BGR' or 'RGB'")
        if len(set(resize.short_edge_length)) != 1:
            raise ValueError(f"shorter edge of test images is {[*resize.short_edge_length]}, expected one length")
        self.model = model.eval().requires_grad_(False)
        self.device, self._resize, self._image_format = model.device, resize, image_format
        self.size = (int(resize.short_edge_length[0]), int(resize.max_size))
        self._heads, matchers = _stages_of(model.roi_heads)
        self.stages = tuple(float(m.thresholds[m.labels.index(1)]) for m in matchers)
        last = self._probe()[-1]
        self.num_classes = last.logits.shape[1] - 1
        self.class_agnostic_boxes = last.boxes[0].ndim == 2
        # Masks are of refined boxes, so a class-agnostic mask needs a class-agnostic box.
        mask_predictor = getattr(getattr(model.roi_heads, "mask_head", None), "predictor", None)
        self.has_masks = self.class_agnostic_boxes and getattr(mask_predictor, "out_channels", 0) == 1
        self.description = {
            "name": name or type(model).__name__,
            "framework": "detectron2",
            "framework_version": detectron2.__version__,
            "weights_sha256": "",
            **sha256,
            "activation": _activation(last),
            "stage_average": "scores",
            "nms_iou": float(self._heads[-1][1].test_nms_thresh),
            "class_agnostic_boxes": self.class_agnostic_boxes,
            "class_agnostic_masks": self.has_masks,
        }

    def forward(self, images: Sequence[Image], level: str, choose: Choose | None = None) -> _Forward:
        """See `extract.detectors.Detector.forward`."""
        sizes = [dict(zip(("height", "width"), image.pixels.shape, strict=False)) for image in images]
        inputs = [{"image": self._tensor(image), **size} for image, size in zip(images, sizes, strict=True)]
        return self.forward_prepared(inputs, [image.image_id for image in images], level, choose)

    @torch.inference_mode()
    def forward_prepared(
        self, inputs: list[dict], image_ids: Sequence[int], level: str, choose: Choose | None = None
    ) -> _Forward:
        """`forward` of what detectron2's models take: dicts of a resized `image` and its original height and width."""
        resized = self.model.preprocess_image(inputs)
        features = self.model.backbone(resized.tensor)
        found, _ = self.model.proposal_generator(resized, features, None)
        shapes = zip(inputs, resized.image_sizes, strict=True)
        sizes = [(one.get("height", height), one.get("width", width)) for one, (height, width) in shapes]
        scales = [self._scale(*pair) for pair in zip(sizes, resized.image_sizes, strict=True)]
        proposals, objectness, added = choose_proposals(
            [p.proposal_boxes.tensor for p in found], [p.objectness_logits.sigmoid() for p in found], scales, choose
        )
        stages = self._run(features, proposals, added, resized.image_sizes, level)
        counts = [len(p) for p in proposals]
        proposals = zip(*(stage.proposals for stage in stages), strict=True)
        logits = zip(*(stage.logits.split(counts) for stage in stages), strict=True)
        stored = [None] * len(inputs)
        if level != "logits":
            stored = zip(*(getattr(stage, level).split(counts) for stage in stages), strict=True)
        boxes = stages[-1].boxes
        parts = zip(image_ids, sizes, scales, proposals, boxes, logits, objectness, stored, added, strict=True)
        rois = [make_rois(*one) for one in parts]
        return _Forward(rois, self.model.roi_heads, features, scales, boxes, resized.image_sizes)

    def head(self, level: str) -> list[Layers]:
        """See `extract.detectors.Detector.head`."""
        if level == "logits":
            return []
        layers = [_layers(level, *parts, seen) for parts, seen in zip(self._heads, self._probe(), strict=True)]
        return layers if all(layers) else []

    def state_with(self, classifiers: Layers) -> dict[str, Tensor]:
        """See `extract.detectors.Detector.state_with`."""
        own = [_classifier(predictor, seen) for (_, predictor), seen in zip(self._heads, self._probe(), strict=True)]
        return with_classifiers(self.model, own, classifiers)

    def unpack(self, result: dict[str, Instances]) -> tuple[Detected, np.ndarray | None]:
        """See `extract.detectors.Detector.unpack`."""
        found = result["instances"].to("cpu")
        masks = found.pred_masks.numpy() if found.has("pred_masks") else None
        return Detected(found.pred_boxes.tensor.numpy(), found.pred_classes.numpy(), found.scores.numpy()), masks

    def resized(self, shorter: int, longer: int) -> Detectron2Detector:
        """See `extract.detectors.Detector.resized`."""
        other = copy.copy(self)
        other.size = (shorter, longer)
        other._resize = ResizeShortestEdge([shorter, shorter], longer, interp=self._resize.interp)
        return other

    def _run(
        self, features: dict[str, Tensor], proposals: list[Tensor], added: list[int], sizes: list[tuple], level: str
    ) -> list[_Stage]:
        """Every stage on the boxes that the one before refined; of the features only those of a level stay."""
        stages, dropped = [], {name: None for name in ("pooled", "embedding") if name != level}
        for index in range(len(self._heads)):
            if index:
                refined = zip(stages[-1].boxes, proposals, added, strict=True)
                proposals = [torch.cat([new[: len(new) - n], old[len(old) - n :]]) for new, old, n in refined]
            stage = self._stage(index, self._pool(features, proposals), proposals, sizes)
            stages.append(stage._replace(**dropped))
        return stages

    def _stage(self, index: int, pooled: Tensor, proposals: list[Tensor], sizes: list[tuple]) -> _Stage:
        head, predictor = self._heads[index]
        embedding = head(pooled)
        predictions = predictor(embedding)
        instances = [Instances(s, proposal_boxes=Boxes(p)) for p, s in zip(proposals, sizes, strict=True)]
        boxes = [_clipped(b, s) for b, s in zip(predictor.predict_boxes(predictions, instances), sizes, strict=True)]
        scores = torch.cat(predictor.predict_probs(predictions, instances))
        return _Stage(proposals, boxes, predictions[0], scores, pooled, embedding.flatten(1))

    def _pool(self, features: dict[str, Tensor], boxes: list[Tensor]) -> Tensor:
        """What the box head takes in, (R, C, P, P)."""
        heads, boxes = self.model.roi_heads, [Boxes(b) for b in boxes]
        maps = [features[name] for name in heads.in_features]
        return heads._shared_roi_transform(maps, boxes) if _is_c4(heads) else heads.box_pooler(maps, boxes)

    @torch.inference_mode()
    def _probe(self) -> list[_Stage]:
        """What each stage makes of four made-up RoIs: it shows what is not an attribute of every model."""
        heads = self.model.roi_heads
        channels = self.model.backbone.output_shape()[heads.in_features[0]].channels
        sides = (heads.pooler if _is_c4(heads) else heads.box_pooler).output_size
        pooled = torch.randn(4, channels, *sides, generator=torch.Generator().manual_seed(0)).to(self.device)
        pooled = heads.res5(pooled) if _is_c4(heads) else pooled
        boxes = pooled.new_tensor([0, 0, 16, 16]).expand(4, 4)
        return [self._stage(index, pooled, [boxes], [(32, 32)]) for index in range(len(self._heads))]

    def _tensor(self, image: Image) -> Tensor:
        """(3, h, w) float32, resized as uint8 like `DefaultPredictor` does it."""
        pixels = image.pixels[:, :, ::-1] if self._image_format == "BGR" else image.pixels
        pixels = self._resize.get_transform(pixels).apply_image(pixels)
        return torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32, order="C"))

    def _scale(self, original: tuple[int, int], resized: tuple[int, int]) -> Tensor:
        """(4,) factors from resized to original xyxy."""
        height, width = (o / r for o, r in zip(original, resized, strict=True))
        return torch.tensor([width, height, width, height], device=self.device)


@dataclass(frozen=True, eq=False)
class _Forward:
    """See `extract.detectors.Forward`; `boxes` and `sizes` of each image are in resized pixels."""

    rois: list[RoIs]
    heads: nn.Module
    features: dict[str, Tensor]
    scales: list[Tensor]
    boxes: list[Tensor]
    sizes: list[tuple[int, int]]

    @torch.inference_mode()
    def masks(self) -> list[np.ndarray]:
        """See `extract.detectors.Forward.masks`."""
        painted = []
        for i, regions in enumerate(self.boxes):
            parts = [self._complete(i, part).pred_masks[:, 0] for part in regions.split(MASK_BATCH)]
            painted.append(to_uint8(torch.cat(parts)))
        return painted

    @torch.inference_mode()
    def results(self, detected: Sequence[Detected]) -> list[dict[str, Instances]]:
        """See `extract.detectors.Forward.results`: `{"instances": Instances}`, as `DefaultPredictor` returns it."""
        found = []
        for i, (one, scale, rois) in enumerate(zip(detected, self.scales, self.rois, strict=True)):
            boxes, labels, scores = (torch.from_numpy(a).to(scale.device) for a in one)
            whole = self._complete(i, boxes / scale, scores=scores, pred_classes=labels)
            found.append({"instances": detector_postprocess(whole, rois.height, rois.width)})
        return found

    def _complete(self, image: int, boxes: Tensor, **fields: Tensor) -> Instances:
        """Boxes (D, 4) in resized pixels with what the other heads say of them: masks, key points."""
        fields = {"pred_classes": boxes.new_zeros(len(boxes), dtype=torch.long), **fields}
        maps = {name: level[image : image + 1] for name, level in self.features.items()}
        instances = Instances(self.sizes[image], pred_boxes=Boxes(boxes), **fields)
        return self.heads.forward_with_given_boxes(maps, [instances])[0]


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


def _build_yaml(spec: DetectorSpec, extend: Callable, device: str) -> _Built:
    cfg = read_yaml(spec, extend)
    cfg.MODEL.DEVICE = device
    resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    decisive = {key: value for key, value in cfg.MODEL.items() if key not in ("WEIGHTS", "DEVICE")}
    return _Built(build_model(cfg), cfg.MODEL.WEIGHTS, resize, cfg.INPUT.FORMAT, decisive)


def _build_lazy(spec: DetectorSpec) -> _Built:
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
    return _Built(instantiate(cfg.model), weights, augmentations[0], image_format, decisive)


@contextmanager
def _errors_of(config_file: Path) -> Iterator[None]:
    """Whatever a config makes fail becomes a ValueError of one line that names the file."""
    try:
        yield
    except Exception as error:  # configs run code and build classes of any kind
        text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        # A bare assertion says nothing, the code that failed does.
        reason = " ".join(text.split()) or traceback.extract_tb(error.__traceback__)[-1].line
        raise ValueError(f"{config_file}: {reason}") from error


def _check(model: nn.Module) -> None:
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


def _digest(built: _Built) -> str:
    """sha256 of what decides the outcome besides the weights; classes and functions of a LazyConfig by their names."""

    def name_of(value: object) -> str:
        name = getattr(value, "__qualname__", None)
        return f"{value.__module__}.{name}" if name else re.sub(r" at 0x\w+", "", repr(value))

    size = (list(built.resize.short_edge_length), built.resize.max_size)
    text = json.dumps([built.decisive, built.image_format, size], sort_keys=True, default=name_of)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_c4(heads: nn.Module) -> bool:
    return isinstance(heads, Res5ROIHeads)


def _stages_of(heads: nn.Module) -> tuple[list[tuple[nn.Module, nn.Module]], list]:
    """Box head and predictor of each stage, and the matchers with their IoUs."""
    if isinstance(heads, CascadeROIHeads):
        return list(zip(heads.box_head, heads.box_predictor, strict=True)), heads.proposal_matchers
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()) if _is_c4(heads) else heads.box_head
    return [(head, heads.box_predictor)], [heads.proposal_matcher]


def _layers(level: str, head: nn.Module, predictor: nn.Module, seen: _Stage) -> Layers:
    """The layers from a level's features to the logits of one stage, [] if they are not fully connected."""
    classifier = _classifier(predictor, seen)
    if classifier is None or level == "embedding":
        return linear_layers([classifier] if classifier else [])
    return proven(linear_layers([*_linears(head), classifier]), seen.pooled, seen.logits)


def _classifier(predictor: nn.Module, seen: _Stage) -> nn.Linear | None:
    """The one layer that leads from the embedding to the logits, if there is one."""
    return next((m for m in _linears(predictor) if proven(linear_layers([m]), seen.embedding, seen.logits)), None)


def _linears(part: nn.Module) -> list[nn.Linear]:
    return [m for m in part.modules() if isinstance(m, nn.Linear)]


def _activation(stage: _Stage) -> str:
    """What turns the logits into the scores of the predictor; background's score is not used."""
    for name, activate in {"softmax": lambda z: z.softmax(1), "sigmoid": Tensor.sigmoid}.items():
        if torch.allclose(activate(stage.logits)[:, :-1], stage.scores[:, :-1], rtol=1e-3, atol=1e-12):
            return name
    raise ValueError("scores of the box predictor are neither softmax nor sigmoid of its logits")


def _clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(r, 4) or (r, 4K) → (r, 4) or (r, K, 4), inside the image."""
    inside = Boxes(boxes.reshape(-1, 4))
    inside.clip(size)
    return inside.tensor if boxes.shape[1] == 4 else inside.tensor.view(len(boxes), boxes.shape[1] // 4, 4)
