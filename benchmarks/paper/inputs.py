"""Caches, heads and detections of a setup's detectors, which are made where they are missing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import calib
import extract
import fuse
from benchmarks.paper.setups import SEED, DetectorFiles, Setup
from calib.config import HeadType
from calib.head_io import WEIGHTS_FILE
from calib.heads import Head
from extract import RoICache
from extract.detectors import load_detector
from extract.detectors.base import Detector
from fuse.config import FusionConfig
from fuse.detections import Detections
from fuse.fusion import Fusion
from fuse.inference import detect_many
from fuse.live import View
from fuse.scores import UNCALIBRATED_MODES

ALL_PROPOSALS = 1000
"""Of the cache for proposal recall."""


class HeadOptions(NamedTuple):
    """How a head is trained, where it differs from the setup's: fields of `calib.Config`."""

    head_type: HeadType = "3fc_ft"
    steps: int | None = None
    lr: float = calib.Config.lr

    def folder(self, setup: Setup, detector: str) -> Path:
        """Returns the head's folder; that of `make demo RECIPE=paper` for the default options."""
        base = setup.caches / detector
        steps = self.steps or setup.steps
        if (self.head_type, steps, self.lr) == ("3fc_ft", setup.steps, calib.Config.lr):
            return base / "head"
        return base / "heads" / f"{self.head_type}-{steps}-{self.lr:g}"


def check_inputs(
    setup: Setup,
    detectors: Iterable[str],
    split: str = "val",
    *,
    heads: Iterable[HeadOptions] = (),
    views: Sequence[View] = (View(),),
) -> None:
    """Raises FileNotFoundError naming a file that something will be made of, but is missing.

    Args:
        setup, split: as of `open_or_extract`.
        detectors: names of `setup.detectors`.
        heads: that each of them needs.
        views: whose caches each of them needs.
    """
    setup.check(splits=("train", split))
    heads = list(heads)
    for detector in detectors:
        caches = [open_finished(_cache_path(setup, detector, split, view)) for view in views]
        trained = all((options.folder(setup, detector) / WEIGHTS_FILE).is_file() for options in heads)
        extracts = any(cache is None or "masks" not in cache.fields for cache in caches)
        if extracts or (not trained and open_finished(_cache_path(setup, detector, "train")) is None):
            setup.check([detector], ("train", split))


def open_or_extract(
    setup: Setup, detector: str, split: str, *, view: View | None = None, proposals: int | None = None
) -> RoICache:
    """Returns a detector's cache; extracts it if it is missing, or resumes it.

    Args:
        setup: the dataset.
        detector: a name of `setup.detectors`.
        split: train, val or test.
        view: of test-time augmentation; the detector's own size, not flipped, by default.
        proposals: per image; with another number than the setup's, the cache has logits alone.
    """
    url = _cache_path(setup, detector, split, view, proposals)
    if (finished := open_finished(url)) is not None:
        return finished
    setup.check([detector], ("train",) if split == "train" else ("train", split))
    files = setup.detectors[detector]
    prepare_framework(files)
    view = view or View()
    options: dict[str, Any] = {"flip": 1.0} if view.flip else {}
    if proposals is not None:
        options |= {"level": "logits", "masks": False, "proposals": proposals}
    elif split != "train":
        options["proposals"] = setup.proposals
    if split == "train":
        options["min_images_per_class"] = setup.min_images_per_class
    else:
        options["train_annotations"] = setup.annotations["train"]
    kind: Literal["train", "val"] = "train" if split == "train" else "val"
    config = extract.Config(
        **files.fields(view.size),
        annotations=setup.annotations[split],
        images=setup.images[split],
        out=str(url),
        split=kind,
        seed=SEED,
        **options,
    )
    found = extract.run(config)
    assert found is not None, "only an estimate returns None"
    return found


def load_or_train(setup: Setup, detector: str, options: HeadOptions | None = None) -> Head:
    """Returns a detector's head; trains it on the train cache if it is missing, or resumes it."""
    options = options or HeadOptions()
    folder = options.folder(setup, detector)
    if (folder / WEIGHTS_FILE).is_file():
        return calib.load_head(folder)
    train = open_or_extract(setup, detector, "train")
    steps = options.steps or setup.steps
    return calib.train_head(train, out=str(folder), head_type=options.head_type, steps=steps, lr=options.lr, seed=SEED)


def detect(
    setup: Setup,
    detector: str,
    split: str,
    configs: Mapping[str, FusionConfig],
    *,
    view: View | None = None,
    heads: Mapping[str, HeadOptions] | None = None,
) -> dict[str, Detections]:
    """Returns a detector's detections with several fusions, with masks, from one pass over its cache.

    Args:
        setup, detector, split, view: as of `open_or_extract`.
        configs: by name.
        heads: of the configs whose head has other options than the setup's.
    """
    cache = open_or_extract(setup, detector, split, view=view)
    fusions = {}
    for name, config in configs.items():
        head = None
        if config.mode not in UNCALIBRATED_MODES:
            head = load_or_train(setup, detector, (heads or {}).get(name))
        fusions[name] = Fusion.for_cache(cache, config, head)
    found = detect_many(cache, fusions, progress=True)
    if "masks" in cache.fields:
        return found
    size = None if view is None else view.size
    return fuse.paint_masks(found, cache, load(setup, detector, size), setup.annotations[split], setup.images[split])


def load(setup: Setup, detector: str, size: tuple[int, int] | None = None) -> Detector:
    """Loads a detector, with another size of its input images if it is given."""
    files = setup.detectors[detector]
    prepare_framework(files)
    return load_detector(extract.DetectorSpec(**files.fields(size)))


def _cache_path(
    setup: Setup, detector: str, split: str, view: View | None = None, proposals: int | None = None
) -> Path:
    """Returns the path of a cache, e.g. `plain/val.zarr` or `plain/test_176_flip.zarr`."""
    view = view or View()
    parts = [split, *([str(view.size[0])] if view.size else [])]
    parts += ["flip"] if view.flip else []
    parts += ["proposals"] if proposals is not None else []
    return setup.caches / detector / f"{'_'.join(parts)}.zarr"


def prepare_framework(files: DetectorFiles) -> None:
    """Replaces the compiled part of mmcv for mmdetection, if it is not installed."""
    if files.detector == "mmdet":
        from benchmarks import mmcv_ext  # imports torchvision, which other frameworks may do without

        mmcv_ext.install()


def open_finished(url: Path) -> RoICache | None:
    """Opens a finished cache; None if there is none, or one that `extract.run` resumes or refuses."""
    try:
        return extract.open_cache(str(url))
    except (FileNotFoundError, extract.CacheError):
        return None
