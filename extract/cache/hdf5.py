"""A whole cache as one HDF5 file, exported and imported.

The file has the layout of the Zarr group, but its RoI arrays are packed, without unused rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from extract.cache.creation import write_cache
from extract.cache.derived import DerivedRoIs, UpperLayers
from extract.cache.format import (
    COLUMNS,
    FORMAT,
    IMAGE_COLUMNS,
    IMAGES_PER_BLOCK,
    OPTIONAL,
    VERSION,
    CacheError,
    Header,
    Layers,
    Projection,
    fingerprint,
    layers_above,
)
from extract.cache.reader import RoICache
from extract.cache.values import image_digest
from extract.data.classes import COLUMNS as CLASS_COLUMNS
from extract.data.classes import check_classes
from extract.rois import RoIs
from extract.utils.errors import one_line, other_version
from extract.utils.files import remove_partials, replacing
from extract.utils.locks import one_writer
from extract.utils.optional import require
from extract.utils.progress import progress_bar

if TYPE_CHECKING:
    import h5py
    import pandas as pd

TEXT_COLUMNS = ("name", "frequency")
CHUNK_BYTES = 1 << 19


def export_hdf5(cache: RoICache, path: str | Path) -> None:
    """Writes a whole cache to one HDF5 file, with a checksum on every chunk.

    Raises FileExistsError naming the file, or ImportError naming the extra that installs h5py.
    """
    h5py = require("h5py", "hdf5")
    path = Path(path)
    with one_writer(path):
        if path.exists():
            raise FileExistsError(f"{path}: exists already; remove it or give another name")
        remove_partials(path.parent, of=path.name)
        with replacing(path) as partial:
            try:
                with h5py.File(partial, "w") as file:
                    _export_tables(cache, file)
                    for field, shape in cache.fields.items():
                        _export_column(cache, field, shape, file)
            except RuntimeError as error:  # h5py's, of a full disk
                raise OSError(f"{path}: cannot be written: {one_line(error)}") from None


def import_hdf5(path: str | Path, url: str, overwrite: bool = False) -> RoICache:
    """Writes a cache from an HDF5 file of `export_hdf5` or of the same layout.

    Raises FileNotFoundError, or CacheError naming the file and what it lacks.
    """
    h5py = require("h5py", "hdf5")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise CacheError(f"{path}: not an HDF5 file: {error}") from None
    with file:
        if file.attrs.get("format") != FORMAT:
            raise CacheError(f"{path}: format {file.attrs.get('format')!r}, expected {FORMAT!r}")
        if (version := file.attrs.get("version")) != VERSION:
            raise CacheError(f"{path}: format {other_version(version, VERSION)}")
        try:
            header = msgspec.json.decode(file.attrs["header"], type=Header)
            for name, group in file.get("detector", {}).items():
                _check_numbers(file.filename, {f"detector/{name}/{part}": array for part, array in group.items()})
            classes, fc_layers = _import_classes(file), _import_layers(file)
            rois, projections = _Hdf5Images(file, header, fc_layers), _import_projections(file)
            _check_fingerprint(file, header, classes)
        except KeyError as error:
            raise CacheError(f"{path}: {error.args[0]}") from None
        except (ValueError, TypeError, AttributeError, OSError, RuntimeError, msgspec.MsgspecError) as error:
            raise CacheError(f"{path}: {one_line(error)}") from None
        return write_cache(
            url, rois, classes, fc_layers=fc_layers, projections=projections, overwrite=overwrite, **vars(header)
        )


class _Hdf5Images(Sequence[RoIs]):
    """The images of an HDF5 file, each loaded on access."""

    def __init__(self, file: h5py.File, header: Header, fc_layers: Sequence[Layers]) -> None:
        self._images = {name: file["images"][name][:] for name in IMAGE_COLUMNS}
        _check_numbers(file.filename, {f"images/{name}": values for name, values in self._images.items()})
        derived = header.level == "hidden" and COLUMNS["logits"].name not in file and bool(fc_layers)
        self._layers = UpperLayers([layers_above("hidden", stage) for stage in fc_layers]) if derived else None
        optional = OPTIONAL | {"logits"} if derived else OPTIONAL
        self._name, self._digests = file.filename, file["images"]["digest"][:] if "digest" in file["images"] else None
        self._columns = {f: file[c.name] for f, c in COLUMNS.items() if c.name in file or f not in optional}
        _check_numbers(file.filename, {COLUMNS[field].name: column for field, column in self._columns.items()})
        self._offsets = np.concatenate([[0], np.cumsum(self._images["roi_count"], dtype=np.int64)])
        for column in self._columns.values():
            if len(column) != self._offsets[-1]:
                raise CacheError(
                    f"{file.filename}: {column.name} has {len(column)} rows, roi_count adds up to {self._offsets[-1]}"
                )

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, position: int) -> RoIs:  # type: ignore[override]  # no slices
        rows = slice(self._offsets[position], self._offsets[position + 1])
        arrays = self._read(position, rows)
        image = {name: self._images[name][position].item() for name in IMAGE_COLUMNS[:-1]}
        values = {**image, **dict.fromkeys(OPTIONAL), **arrays, "is_gt": arrays["is_gt"].astype(bool)}
        if self._layers is None:
            try:
                return RoIs(**values)
            except ValueError as error:  # which names the image
                raise CacheError(f"{self._name}: {error}") from None
        return DerivedRoIs.make(self._layers, partial(self._columns["features"].__getitem__, rows), **values)

    def _read(self, position: int, rows: slice) -> dict[str, np.ndarray]:
        """Reads an image's arrays, and compares them with its digest, which files of other programs may lack."""
        try:
            arrays = {field: column[rows] for field, column in self._columns.items()}
            if self._digests is not None and image_digest(list(arrays.values())) != self._digests[position]:
                raise ValueError("its arrays do not have the digest in images/digest")
        except (ValueError, OSError, RuntimeError) as error:
            image = f"image {self._images['image_id'][position]}"
            raise CacheError(f"{self._name}: {image}: damaged: {one_line(error)}") from None
        return arrays


def _check_numbers(file: str, datasets: Mapping[str, np.ndarray | h5py.Dataset]) -> None:
    """Raises CacheError for a dataset that does not hold numbers."""
    for name, dataset in datasets.items():
        if getattr(dataset, "dtype", np.dtype(object)).kind not in "biuf":
            raise CacheError(f"{file}: {name} does not hold numbers")


def _check_fingerprint(file: h5py.File, header: Header, classes: pd.DataFrame) -> None:
    """Raises CacheError unless header and tables are those that were exported; other programs write no fingerprint."""
    import pandas as pd

    if "fingerprint" in file.attrs:
        images = pd.DataFrame({name: file["images"][name][:] for name in IMAGE_COLUMNS[:-1]})
        tables = check_classes(classes, file.filename), images, file["images"]["digest"][:]
        if fingerprint(header, *tables) != file.attrs["fingerprint"]:
            raise CacheError("damaged: its header and tables do not have its fingerprint")


def _export_tables(cache: RoICache, file: h5py.File) -> None:
    file.attrs.update({"format": FORMAT, "version": VERSION})
    file.attrs.update({"header": msgspec.json.encode(cache.header).decode(), "fingerprint": cache.fingerprint})
    for name in cache.classes:
        values = cache.classes[name]
        text = name in TEXT_COLUMNS
        _export_table(file, f"classes/{name}", np.array([v.encode() for v in values]) if text else values.to_numpy())
    for name in cache.images:
        _export_table(file, f"images/{name}", cache.images[name].to_numpy())
    _export_table(file, "images/digest", cache.digests)
    for stage in range(len(cache.stages)):
        for depth, (weight, bias) in enumerate(cache.fc_layers(stage)):
            _export_table(file, f"detector/stage_{stage}/weight_{depth}", weight)
            _export_table(file, f"detector/stage_{stage}/bias_{depth}", bias)
    for stage, projection in enumerate(cache.projections):
        for name, values in projection._asdict().items():
            _export_table(file, f"detector/stage_{stage}/{name}", values)


def _export_table(file: h5py.File, name: str, values: np.ndarray) -> None:
    """Writes a dataset as one chunk with a checksum, where it has any values."""
    chunks = values.shape if values.size else None
    file.create_dataset(name, data=values, chunks=chunks, fletcher32=chunks is not None)


def _export_column(cache: RoICache, field: str, shape: tuple[int, ...], file: h5py.File) -> None:
    column, total = COLUMNS[field], int(cache.offsets[-1])
    width = max(int(np.prod(shape, dtype=np.int64)) * np.dtype(column.dtype).itemsize, 1)
    chunks = (min(max(CHUNK_BYTES // width, 1), max(total, 1)), *shape)
    dataset = file.create_dataset(
        column.name, (total, *shape), column.dtype, chunks=chunks, maxshape=(None, *shape), fletcher32=True
    )
    bounds = cache.offsets[[*range(0, len(cache), IMAGES_PER_BLOCK), len(cache)]]
    for start, stop in progress_bar(list(pairwise(bounds)), desc=column.name, unit="block", leave=False):
        dataset[start:stop] = cache.take(field, np.arange(start, stop))


def _import_classes(file: h5py.File) -> pd.DataFrame:
    import pandas as pd

    columns = {name: file["classes"][name][:] for name in CLASS_COLUMNS}
    return pd.DataFrame(columns | {name: [value.decode() for value in columns[name]] for name in TEXT_COLUMNS})


def _import_layers(file: h5py.File) -> list[Layers]:
    """Reads each stage's fully connected layers; [] if the file has none."""
    depths = [sum(name.startswith("weight_") for name in group) for group in _stage_groups(file)]
    pairs = zip(_stage_groups(file), depths, strict=True)
    return [[(g[f"weight_{d}"][:], g[f"bias_{d}"][:]) for d in range(depth)] for g, depth in pairs]


def _import_projections(file: h5py.File) -> list[Projection]:
    """Reads each stage's projection; [] if the file has none."""
    groups = [group for group in _stage_groups(file) if "directions" in group]
    return [Projection(*(group[name][:] for name in Projection._fields)) for group in groups]


def _stage_groups(file: h5py.File) -> list[h5py.Group]:
    return [file[f"detector/stage_{s}"] for s in range(len(file.get("detector", ())))]
