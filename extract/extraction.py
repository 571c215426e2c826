"""`python -m extract`: a detector, annotations and images → a RoI cache."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from PIL import Image as PILImage
from PIL import UnidentifiedImageError
from tqdm import tqdm

from extract.annotations import Annotations, read_annotations
from extract.cache import RoICache, open_cache
from extract.config import Config
from extract.detectors import Detector, Image, load_detector
from extract.layout import CacheError, Header, block_slice, num_blocks, open_group, row_bytes
from extract.matching import GroundTruth, choose_training, label_rois
from extract.plan import class_balanced_images
from extract.rois import RoIs
from extract.shards import CacheWriter, create_cache, resume_cache

log = logging.getLogger(__name__)
RUNTIME_FIELDS = {"out", "weights", "annotations", "images", "train_annotations", "device", "batch_size"}
RUNTIME_FIELDS |= {"overwrite", "estimate"}
"""Options that leave the cache's content alone, or that the recorded sha256 stand for."""


def run(config: Config) -> RoICache | None:
    """Extracts, or resumes what was begun at `config.out`; returns the cache (None after an estimate).

    Raises ValueError or FileNotFoundError naming the file and the field; nothing is written before the detector,
    the annotations and the first images have proved readable.
    """
    annotations = read_annotations(config.annotations)
    source = read_annotations(config.train_annotations) if config.train_annotations else annotations
    _same_classes(annotations, source)
    detector = load_detector(config)
    _fits(detector, annotations, config)
    job = Extraction(config, annotations, detector)
    header = Header(config.level, detector.stages, detector.description, _provenance(config, annotations, source))
    if not config.overwrite and (cache := _finished(config, header)):
        log.info("%s is finished already", config.out)
        return cache
    started = time.perf_counter()
    first = job.block(0)
    _log_estimate(job, first, time.perf_counter() - started)
    if config.estimate:
        return None
    writer = _writer(config, header, job, first[0], source)
    pending = writer.pending()
    with tqdm(total=len(job.positions), unit="image", desc=f"extract {config.split}", disable=None) as progress:
        progress.update(sum(len(job.positions[block_slice(b)]) for b in range(job.blocks) if b not in pending))
        for block in pending:
            rois = first if block == 0 else job.block(block)
            writer.write_block(block, rois)
            progress.update(len(rois))
    return writer.finish()


def command(config: Config) -> None:
    """`run`, then what the cache holds."""
    if cache := run(config):
        print(cache)


class Extraction:
    """The images to visit, in their order, and one block of them at a time."""

    def __init__(self, config: Config, annotations: Annotations, detector: Detector):
        self.config, self.annotations, self.detector = config, annotations, detector
        self.positions = np.arange(len(annotations.image_ids))
        if config.images_per_class is not None:
            self.positions = class_balanced_images(annotations, config.images_per_class, config.seed)
        self.blocks = num_blocks(len(self.positions))
        self.masks = config.masks if config.masks is not None else config.split == "val" and detector.has_masks
        flip = config.flip if config.flip is not None else 0.5 * (config.split == "train")
        self.flipped = np.array([self._rng(p, 0).random() < flip for p in self.positions], bool)

    @property
    def capacity(self) -> int:
        """Upper bound of the RoIs kept of one image."""
        objects = np.diff(self.annotations.offsets)[self.positions].max(initial=0)
        return self.config.proposals + (int(objects) if self.config.split == "train" else 0)

    def block(self, block: int) -> list[RoIs]:
        """The RoIs of one block's images, labelled, in the coordinates of the unflipped images."""
        indices = range(len(self.positions))[block_slice(block)]
        size = self.config.batch_size
        batches = [indices[i : i + size] for i in range(0, len(indices), size)]
        return [rois for batch in batches for rois in self._batch(list(batch))]

    def _batch(self, indices: list[int]) -> Iterator[RoIs]:
        images = [self._load(i) for i in indices]
        truths = [self._truth(i) for i in indices]
        found = self.detector.rois(
            images,
            choose=lambda i, proposals: self._choose(indices[i], truths[i], proposals),
            level=self.config.level,
            masks=self.masks,
        )
        for index, rois, truth in zip(indices, found, truths, strict=True):
            labelled = label_rois(rois, truth, self.detector.stages)
            yield _mirror_back(labelled) if self.flipped[index] else labelled

    def _load(self, index: int) -> Image:
        position = self.positions[index]
        size = (int(self.annotations.heights[position]), int(self.annotations.widths[position]))
        pixels = read_image(self.config.images, self.annotations.file_names[position], size)
        image_id = int(self.annotations.image_ids[position])
        return Image(image_id, pixels[:, ::-1] if self.flipped[index] else pixels)

    def _truth(self, index: int) -> GroundTruth:
        position = self.positions[index]
        a, of = self.annotations, self.annotations.of(position)
        boxes = a.boxes[of]
        if self.flipped[index]:
            boxes = mirror_boxes(boxes, int(a.widths[position]))
        return GroundTruth(boxes, a.labels[of], a.ids[of], a.crowd[of])

    def _choose(self, index: int, truth: GroundTruth, proposals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        proposals = proposals[: self.config.proposals]
        if self.config.split == "val":
            return np.arange(len(proposals)), np.empty((0, 4), np.float32)
        rng = self._rng(self.positions[index], 1)
        keep = choose_training(proposals, truth, self.detector.stages[0], self.config.background, rng)
        return keep, truth.boxes[~truth.crowd]

    def _rng(self, position: int, purpose: int) -> np.random.Generator:
        """One generator per image and purpose, so that an image's draws depend on no other image."""
        return np.random.default_rng([self.config.seed, int(self.annotations.image_ids[position]), purpose])


def read_image(folder: Path, names: tuple[str, ...], size: tuple[int, int]) -> np.ndarray:
    """The first of `names` that exists below `folder`, as (H, W, 3) uint8 RGB.

    Raises FileNotFoundError naming the folder and the names tried, ValueError for a file that is no image or
    not of `size` (height, width).
    """
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder}: has no {' or '.join(names) or 'image without a file name'}")
    try:
        with PILImage.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{path}: not a readable image: {error}") from None
    if pixels.shape[:2] != size:
        raise ValueError(
            f"{path}: image is {pixels.shape[1]}×{pixels.shape[0]}, the annotations say {size[1]}×{size[0]}"
        )
    return pixels


def mirror_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
    """xyxy boxes (…, 4) of the image mirrored left to right."""
    mirrored = boxes.copy()
    mirrored[..., 0], mirrored[..., 2] = width - boxes[..., 2], width - boxes[..., 0]
    return mirrored


def _mirror_back(rois: RoIs) -> RoIs:
    return replace(
        rois,
        proposals=mirror_boxes(rois.proposals, rois.width),
        boxes=mirror_boxes(rois.boxes, rois.width),
        masks=None if rois.masks is None else rois.masks[:, :, ::-1],
        flipped=True,
    )


def _same_classes(annotations: Annotations, source: Annotations) -> None:
    columns = ["category_id", "name"]
    ours, theirs = (set(map(tuple, a.classes[columns].to_numpy())) for a in (annotations, source))
    if ours != theirs:
        example = sorted(ours ^ theirs)[0]
        owner = annotations.path if example in ours else source.path
        raise ValueError(
            f"categories of {annotations.path} and {source.path} differ in {len(ours ^ theirs)} entries, "
            f"such as {example[0]} {example[1]!r}, which only {owner} has"
        )


def _fits(detector: Detector, annotations: Annotations, config: Config) -> None:
    if detector.num_classes != len(annotations.classes):
        raise ValueError(
            f"detector {config.detector} has {detector.num_classes} classes, "
            f"{annotations.path} has {len(annotations.classes)}"
        )
    if config.masks and not detector.has_masks:
        raise ValueError(f"masks: detector {config.detector} predicts no class-agnostic masks")


def _provenance(config: Config, annotations: Annotations, source: Annotations) -> dict:
    content = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in RUNTIME_FIELDS}
    content |= {"detector_options": list(config.detector_options)}
    return {
        "config": content,
        "annotations_sha256": annotations.sha256,
        "train_annotations_sha256": source.sha256,
        "versions": {"python": platform.python_version(), "numpy": version("numpy"), "zarr": version("zarr")},
    }


def _finished(config: Config, header: Header) -> RoICache | None:
    """The finished cache at `out`, if any. Raises CacheError where a cache of another config is there."""
    try:
        attributes = open_group(config.out, "r").attrs.asdict()
    except FileNotFoundError:
        return None
    ours, theirs = (_flat({**h, "stages": list(h["stages"])}) for h in (asdict(header), _header(attributes)))
    differing = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    differing = [key for key in differing if not key.startswith("provenance.versions.")]
    if differing:
        key = differing[0]
        raise CacheError(
            f"{config.out}: was made with other options: {', '.join(differing)} differ "
            f"({key}: {theirs.get(key)!r} there, {ours.get(key)!r} now); --overwrite starts anew"
        )
    return open_cache(config.out) if attributes["complete"] else None


def _header(attributes: dict) -> dict:
    return {name: attributes[name] for name in ("level", "stages", "detector", "provenance")}


def _flat(tree: dict, prefix: str = "") -> dict[str, object]:
    flat = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _writer(config: Config, header: Header, job: Extraction, template: RoIs, source: Annotations) -> CacheWriter:
    import pandas as pd

    if not config.overwrite:
        try:
            return resume_cache(config.out)
        except FileNotFoundError:
            pass
    a = job.annotations
    images = pd.DataFrame(
        {
            "image_id": a.image_ids[job.positions],
            "height": a.heights[job.positions],
            "width": a.widths[job.positions],
            "flipped": job.flipped,
        }
    )
    head = job.detector.head(config.level)
    return create_cache(
        config.out, template, header, source.classes, images, job.capacity, head, overwrite=config.overwrite
    )


def _log_estimate(job: Extraction, first: list[RoIs], seconds: float) -> None:
    images, rois = len(job.positions), np.mean([len(r) for r in first])
    log.info(
        "%s images, about %.0f RoIs each at %s bytes: about %.2f GB; about %.0f minutes at %.1f images per second",
        f"{images:,}",
        rois,
        f"{row_bytes(first[0]):,}",
        images * rois * row_bytes(first[0]) / 1e9,
        images * seconds / len(first) / 60,
        len(first) / seconds,
    )
