"""What the tables are measured on: a dataset, its detectors and how their heads are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuse.defaults import TAIL

ROOT = Path(__file__).parents[2]
MINILVIS = ROOT / "benchmarks" / "minilvis"
MASK_RCNN = "torchvision:benchmarks.minilvis.detector:mask_rcnn"
CASCADE = "detectron2:benchmarks.minilvis.cascade:register"
SEED = 0
"""Of extraction and of training."""
SIZE_OPTIONS = {
    "torchvision": "min_size={shorter} max_size={longer}",
    "detectron2": "INPUT.MIN_SIZE_TEST {shorter} INPUT.MAX_SIZE_TEST {longer}",
    "mmdet": "test_dataloader.dataset.pipeline.1.scale=({longer},{shorter})",
}
"""Framework → options that set the size of its input images."""


@dataclass(frozen=True)
class DetectorFiles:
    """A detector: fields of `extract.DetectorSpec`, and what it is."""

    detector: str
    weights: Path
    config_file: Path | None = None
    options: tuple[str, ...] = ()
    note: str = ""
    """What it is and where its weights are from, for the message that they are missing."""

    def fields(self, size: tuple[int, int] | None = None) -> dict[str, Any]:
        """Returns the fields of `extract.DetectorSpec`; `size` (shorter, longer) replaces that of the input images."""
        options = self.options
        if size is not None:
            text = SIZE_OPTIONS[self.detector.partition(":")[0]]
            options += tuple(text.format(shorter=size[0], longer=size[1]).split())
        return {
            "detector": self.detector,
            "weights": self.weights,
            "config_file": self.config_file,
            "detector_options": options,
        }


@dataclass(frozen=True)
class Setup:
    """A dataset with its detectors."""

    name: str
    annotations: Mapping[str, Path]
    """Of the splits train and val, and test where its annotations are public."""
    images: Mapping[str, Path]
    """Folders of the images of each split."""
    caches: Path
    """Folder of the caches and heads, one folder per detector."""
    detectors: Mapping[str, DetectorFiles]
    """By the names that the tables use."""
    ensemble: Sequence[str]
    """The detectors of Tables 9 and 10, the best first."""
    scales: Sequence[tuple[int, int]]
    """(shorter, longer) edges of multi-scale testing besides the detector's own."""
    steps: int = 12_000
    """Training steps of a head."""
    min_images_per_class: int | None = None
    proposals: int = 1000
    """Per image of val and test."""
    tails: Mapping[str, float] = field(default_factory=dict)
    """Bounds T of detectors for which it is not 100."""
    note: str = ""
    """How the dataset is made, for the message that it is missing."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Names in tables → names in `detectors`, where they differ."""

    def tail(self, detector: str) -> float:
        """Returns the number of training instances below which a class takes the calibrated scores."""
        return self.tails.get(detector, TAIL)

    @property
    def test_split(self) -> str:
        """The split of Table 10: test, or val where the annotations of test are not public."""
        return "test" if "test" in self.annotations else "val"

    def check(self, detectors: Sequence[str] = (), splits: Sequence[str] = ("train", "val")) -> None:
        """Raises FileNotFoundError naming the first file that is missing, and what it is."""
        for split in splits:
            _require(self.annotations[split], f"annotations of {self.name} {split}{self.note}")
        if not detectors:
            return
        for split in splits:
            _require(self.images[split], f"images of {self.name} {split}")
        for name in detectors:
            files = self.detectors[name]
            _require(files.weights, f"weights of detector {name}" + (f": {files.note}" if files.note else ""))
            if files.config_file is not None:
                _require(files.config_file, f"config file of detector {name}")


def _require(path: Path, what: str) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path}: is missing, expected the {what}")


def mini_lvis(data: Path = ROOT / "data") -> Setup:
    """Returns Mini-LVIS, as `python -m benchmarks.minilvis.make` draws it, with the committed detectors."""
    weights, folder = MINILVIS / "weights", data / "minilvis"
    splits = ("train", "val", "test")
    without_semantic = MINILVIS / "htc_no_semantic.py"
    return Setup(
        name="Mini-LVIS",
        annotations={split: folder / f"{split}.json" for split in splits},
        images={split: folder / split for split in splits},
        caches=data,
        detectors={
            "plain": DetectorFiles(MASK_RCNN, weights / "plain.safetensors"),
            "rfs": DetectorFiles(MASK_RCNN, weights / "rfs.safetensors"),
            "cascade": DetectorFiles(CASCADE, weights / "cascade.safetensors", MINILVIS / "cascade.yaml"),
            "htc": DetectorFiles("mmdet", weights / "htc.safetensors", MINILVIS / "htc.py"),
            **{
                name: DetectorFiles(
                    "mmdet",
                    weights / f"{name}.safetensors",
                    without_semantic,
                    note="python -m benchmarks.minilvis.train_htc makes them",
                )
                for name in ("htc_no_semantic", "htc_scratch_no_semantic")
            },
        },
        ensemble=("rfs", "plain", "cascade", "htc"),
        scales=((176, 176),),
        steps=2000,
        min_images_per_class=20,
        proposals=300,
        note="; python -m benchmarks.minilvis.make draws it",
        aliases={"htc_best": "htc", "htc_semantic": "htc"},
    )
