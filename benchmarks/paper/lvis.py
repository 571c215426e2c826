"""LVIS v0.5 and v1 in a user's folder: where files are expected, and which configs of mmdetection's model zoo are used.

    PATH/lvis_v0.5_train.json, lvis_v0.5_val.json     or lvis_v1_train.json, lvis_v1_val.json
    PATH/train2017, PATH/val2017                      images of COCO 2017
    PATH/weights/NAME.pth                             weights of the detectors, see `NOTES`
    PATH/caches                                       is written

The paper's detectors were not published. Weights of the Mask R-CNN with repeat factor sampling are in the zoo; the
others are trained from the configs below.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from benchmarks.paper.setups import DetectorFiles, Setup

VERSIONS = {"v0.5": 1230, "v1": 1203}
"""Version → number of classes."""
CONFIGS = {
    "plain": "lvis/mask-rcnn_r50_fpn_sample1e-3_{schedule}_lvis-{version}.py",
    "rfs": "lvis/mask-rcnn_r50_fpn_sample1e-3_{schedule}_lvis-{version}.py",
    "cascade": "cascade_rcnn/cascade-mask-rcnn_x101-64x4d_fpn_20e_coco.py",
    "htc": "htc/htc_x101-64x4d_fpn_16xb1-20e_coco.py",
    "htc_dcn": "htc/htc_x101-64x4d-dconv-c3-c5_fpn_ms-400-1400-16xb1-20e_coco.py",
    "htc_dcn_rfs": "htc/htc_x101-64x4d-dconv-c3-c5_fpn_ms-400-1400-16xb1-20e_coco.py",
    "htc_x101_32": "htc/htc_x101-64x4d-dconv-c3-c5_fpn_ms-400-1400-16xb1-20e_coco.py",
    "htc_cos": "htc/htc_x101-64x4d-dconv-c3-c5_fpn_ms-400-1400-16xb1-20e_coco.py",
    "htc_r101": "htc/htc_r101_fpn_20e_coco.py",
    "htc_semantic": "htc/htc_r50_fpn_1x_coco.py",
    "htc_no_semantic": "htc/htc-without-semantic_r50_fpn_1x_coco.py",
    "htc_scratch_no_semantic": "htc/htc-without-semantic_r50_fpn_1x_coco.py",
}
"""Detector → its config in mmdetection's model zoo."""
DEFORMABLE = (
    "model.backbone.dcn.type=DCN model.backbone.dcn.deform_groups=1 model.backbone.dcn.fallback_on_stride=False "
    "model.backbone.stage_with_dcn=(False,True,True,True)"
)
RESNEXT_50 = "model.backbone.type=ResNeXt model.backbone.groups=32 model.backbone.base_width=4"
OPTIONS = {
    "htc_x101_32": "model.backbone.groups=32",
    "htc_r101": DEFORMABLE,
    "htc_semantic": RESNEXT_50,
    "htc_no_semantic": RESNEXT_50,
    "htc_scratch_no_semantic": RESNEXT_50,
}
"""Detector → options that make the config the paper's model."""
ZOO_WEIGHTS = {
    "v0.5": "mask_rcnn_r50_fpn_sample1e-3_mstrain_2x_lvis-dbd06831.pth",
    "v1": "mask_rcnn_r50_fpn_sample1e-3_mstrain_1x_lvis_v1-aa78ac3d.pth",
}
NOTES = {
    "plain": "Mask R-CNN R50-FPN, trained without repeat factor sampling",
    "rfs": "Mask R-CNN R50-FPN with repeat factor sampling, the zoo's {zoo}",
    "cascade": "Cascade Mask R-CNN X101-64x4d",
    "htc": "Hybrid Task Cascade X101-64x4d",
    "htc_dcn": "Hybrid Task Cascade X101-64x4d with deformable convolution, multi-scale training",
    "htc_dcn_rfs": "the same, trained with repeat factor sampling",
    "htc_x101_32": "the same with X101-32x4d",
    "htc_cos": "the same, trained with a cosine schedule",
    "htc_r101": "the same with R101",
    "htc_semantic": "Hybrid Task Cascade X50 from COCO weights, with the semantic branch",
    "htc_no_semantic": "Hybrid Task Cascade X50 from COCO weights, without the semantic branch",
    "htc_scratch_no_semantic": "Hybrid Task Cascade X50 from ImageNet weights, without the semantic branch",
}
SUFFIXES = (".pth", ".pkl", ".safetensors")


def lvis(path: Path) -> Setup:
    """Returns LVIS in a folder. Raises FileNotFoundError or ValueError unless it has one version's annotations."""
    version = _version(path)
    annotations = {split: path / f"lvis_{version}_{split}.json" for split in ("train", "val")}
    folders = {split: path / f"{split}2017" for split in ("train", "val")}
    if version == "v1":  # file names begin with the folder, and some images of val are COCO's train2017
        folders = dict.fromkeys(folders, path)
    return Setup(
        name=f"LVIS {version}",
        annotations=annotations,
        images=folders,
        caches=path / "caches",
        detectors={name: _files(path, name, version) for name in CONFIGS},
        ensemble=("htc_dcn", "htc_x101_32", "htc_cos", "htc_r101"),
        scales=((600, 1000), (1000, 1666), (1200, 2000)),
        min_images_per_class=100,
        tails={name: 10 for name in CONFIGS if name.startswith("htc")},
        aliases={"htc_best": "htc_dcn"},
    )


def _version(path: Path) -> str:
    """Returns the version whose annotations are in a folder."""
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: is no folder, expected one with the annotations, images and weights of LVIS")
    found = [version for version in VERSIONS if (path / f"lvis_{version}_train.json").is_file()]
    if not found:
        raise FileNotFoundError(f"{path}: has no lvis_v0.5_train.json or lvis_v1_train.json")
    if len(found) > 1:
        raise ValueError(f"{path}: has lvis_v0.5_train.json and lvis_v1_train.json, expected one version per folder")
    return found[0]


def _files(path: Path, name: str, version: str) -> DetectorFiles:
    """Returns a detector's files; where its weights are missing, the path where they are expected."""
    schedule = "ms-2x" if version == "v0.5" else "ms-1x"
    config = CONFIGS[name].format(version=version, schedule=schedule)
    candidates = [path / "weights" / f"{name}{suffix}" for suffix in SUFFIXES]
    weights = next((file for file in candidates if file.is_file()), candidates[0])
    note = NOTES[name].format(zoo=ZOO_WEIGHTS[version])
    options = tuple(OPTIONS.get(name, "").split())
    if "lvis" not in config:
        options += _num_classes(VERSIONS[version], name)
    return DetectorFiles("mmdet", weights, _zoo() / config, options, f"{note}; config {config} of mmdetection's zoo")


def _num_classes(classes: int, name: str) -> tuple[str, ...]:
    """Returns the options that give a three-stage config of COCO the number of classes."""
    mask_heads = ("mask_head",) if name == "cascade" else tuple(f"mask_head.{stage}" for stage in range(3))
    heads = (*(f"bbox_head.{stage}" for stage in range(3)), *mask_heads)
    return tuple(f"model.roi_head.{head}.num_classes={classes}" for head in heads)


def _zoo() -> Path:
    """Returns the folder of mmdetection's configs; without mmdetection a folder that does not exist."""
    spec = find_spec("mmdet")
    origin = Path(spec.origin).parent if spec and spec.origin else Path("mmdet")
    return origin / ".mim" / "configs"
