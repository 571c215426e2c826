"""The options of the commands of `python -m extract` besides extraction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from extract.config import Config, check_projection

RowKind = Literal["class", "bin", "label"]
"""What a row of a contact sheet is."""


@dataclass(frozen=True)
class InspectConfig:
    """Shows what a cache holds.

    Example: python -m extract inspect train.zarr
    """

    cache: Positional[str]
    """Path or fsspec URL."""


@dataclass(frozen=True)
class ConvertConfig:
    """Writes a cache of a later feature level from the features of a cache. The same command again resumes.

    Example: python -m extract convert train.zarr hidden_train.zarr

    Example: python -m extract convert val.zarr hidden_val.zarr --projection-from hidden_train.zarr
    """

    cache: Positional[str]
    """Path or fsspec URL of a finished cache."""

    out: Positional[str]
    """Path or fsspec URL of the cache to write."""

    level: Literal["hidden", "embedding", "logits"] = "hidden"
    """Feature level of the new cache, later than that of the old one: pooled, hidden, embedding, logits."""

    projection: int = Config.projection
    """Number of principal directions that level hidden keeps the coordinates of pooled maps along; 0 for none. They are
    fitted on RoIs of a train cache."""

    projection_from: str | None = None
    """Cache of level hidden whose directions are taken over: a val cache's from its train cache."""

    device: str = "auto"
    """cpu, cuda, cuda:1 …; auto is a GPU if there is one, else the CPU."""

    overwrite: bool = False
    """Replace an existing cache."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the option, its value and its bound."""
        check_projection(self.level, self.projection, self.projection_from)


@dataclass(frozen=True)
class VerifyConfig:
    """Reads a whole cache, compares all checksums and digests, and recomputes its logits from the stored features.

    Example: python -m extract verify train.zarr
    """

    cache: Positional[str]
    """Path or fsspec URL."""

    repair: bool = False
    """Mark what is damaged as not extracted yet: the command that made the cache then extracts that part again."""


@dataclass(frozen=True)
class ExportConfig:
    """Writes a whole cache to one HDF5 file.

    Example: python -m extract export train.zarr train.h5
    """

    cache: Positional[str]
    """Path or fsspec URL."""

    file: Positional[Path]
    """The .h5 file to write."""


@dataclass(frozen=True)
class ImportConfig:
    """Writes a cache from an HDF5 file; docs/format.md specifies its content.

    Example: python -m extract import train.h5 train.zarr
    """

    file: Positional[Path]
    """The .h5 file."""

    cache: Positional[str]
    """Path or fsspec URL of the cache to write."""

    overwrite: bool = False
    """Replace an existing cache."""


@dataclass(frozen=True)
class BrowseConfig:
    """Draws a contact sheet of a cache's RoIs, cut out of their images, with the detector's own class of each.

    A wrong order of classes and shifted boxes are seen at once.

    Example: python -m extract browse val.zarr --annotations val.json --images val/ --out browse.png
    """

    cache: Positional[str]
    """Path or fsspec URL."""

    annotations: Path
    """The annotation file it was extracted with, or the name of a dataset in detectron2's catalog."""

    out: Path
    """The .png file to write."""

    images: Path | None = None
    """Folder that the file names in the annotations are relative to; datasets of the catalog have a default."""

    by: RowKind = "class"
    """What a row is: a class, from the rarest to the most frequent; a bin of training instances; or a label: objects,
    background and ignored RoIs."""

    classes: tuple[str, ...] = ()
    """Names of the classes to show; by default all, or an even choice of them if they are more than --max-rows."""

    max_rows: int = 30
    """Rows, at most, where --classes does not name them."""

    columns: int = 8
    """RoIs per row, at most."""

    allow_outside: bool = False
    """Read images whose file names in the annotations lead out of `images`, as ../ and absolute paths do."""

    def __post_init__(self) -> None:
        """Raises ValueError naming the option, its value and what is expected."""
        if self.out.suffix.lower() != ".png":
            raise ValueError(f"out is {self.out}, expected a .png file")


@dataclass(frozen=True)
class RecallConfig:
    """Average recall of a val cache's proposals, overall and per bin of training instances (paper, Table 3).

    Example: python -m extract recall val.zarr --annotations val.json
    """

    cache: Positional[str]
    """Path or fsspec URL of a val cache."""

    annotations: Path
    """The annotation file it was extracted with."""

    bins: tuple[float, ...] = (10, 100, 1000)
    """Edges between the bins of training instances."""

    strict: bool = False
    """Refuse annotations of which something would be left out or changed, in place of a warning."""
