"""The image files of `python -m fuse predict`: found in folders, and matched with an annotation file."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from extract.data.annotations import Annotations

_LOG = logging.getLogger(__name__)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm")
"""Of the files in a folder that are images. A file that is named itself may have any suffix."""


class ImageFile(NamedTuple):
    """An image to detect in.

    Attributes:
        path: the file.
        name: its path in the folder that was given; the file's name if it was given itself.
        in_folder: whether it was found in a folder.
        image_id: of the annotation file; None without one.
        size: (height, width) in the annotation file, None if unknown.
    """

    path: Path
    name: str
    in_folder: bool
    image_id: int | None = None
    size: tuple[int, int] | None = None


def find_images(inputs: Sequence[Path], out: Path) -> list[ImageFile]:
    """Returns the given files and the images in the given folders, each once, sorted within a folder.

    Files of other kinds, hidden files and folders, and what is in `out` are left out; the number of files is logged.

    Raises FileNotFoundError for what does not exist, ValueError for a folder without images or one that is `out`.
    """
    found: dict[Path, ImageFile] = {}
    for given in inputs:
        if given.is_dir():
            images: list[ImageFile] = list(_images_in(given, out))
        elif given.is_file():
            images = [ImageFile(given, given.name, in_folder=False)]
        else:
            raise FileNotFoundError(f"{given}: no such image or folder")
        for image in images:
            found.setdefault(image.path.resolve(), image)
    return list(found.values())


def match_annotations(images: Sequence[ImageFile], annotations: Annotations) -> list[ImageFile]:
    """Returns the images that the annotation file names, with their ids and sizes; logs how many are left out.

    As in extraction, file names are relative to the folder that was given; of a file that was given itself, the end of
    its path must be a file name, the longest such end decides.

    Raises ValueError for a file that could be several images, an image that could be several files, or if none match.
    """
    positions: dict[str, list[int]] = {}
    for position, names in enumerate(annotations.file_names):
        for name in names:
            positions.setdefault(name, []).append(position)
    matched: dict[int, ImageFile] = {}
    unknown: list[ImageFile] = []
    for image in images:
        found = next((name for name in _possible_names(image) if name in positions), None)
        if found is None:
            unknown.append(image)
            continue
        annotated = _annotated(image, found, positions[found], annotations)
        assert annotated.image_id is not None
        if (other := matched.setdefault(annotated.image_id, annotated)) is not annotated:
            raise ValueError(f"{other.path} and {image.path}: both are image {other.image_id} of {annotations.path}")
    if not matched:
        example = next(iter(annotations.file_names[0]), "")
        raise ValueError(
            f"images: {annotations.path} names none of the {len(images):,} images, such as {images[0].name}; it names "
            f"such as {example}; give the folder that its file names are relative to"
        )
    _log_unmatched(images, unknown, matched, annotations)
    return list(matched.values())


def _images_in(folder: Path, out: Path) -> Iterator[ImageFile]:
    if out.resolve() == folder.resolve():
        raise ValueError(f"out is {out}, which is a folder of images: give another folder")
    left_out, found = [], 0
    for parent, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = sorted(f for f in folders if f[0] != "." and Path(parent, f).resolve() != out.resolve())
        for file in sorted(files):
            path = Path(parent, file)
            if file[0] == "." or path.suffix.lower() not in SUFFIXES:
                left_out.append(path)
                continue
            found += 1
            yield ImageFile(path, path.relative_to(folder).as_posix(), in_folder=True)
    if not found:
        raise ValueError(f"{folder}: has no image: no file with one of the suffixes {' '.join(SUFFIXES)}")
    others = f"; {len(left_out):,} other files are left out, such as {left_out[0]}" if left_out else ""
    _LOG.info("%s: %s images%s", folder, f"{found:,}", others)


def _raise(error: OSError) -> None:
    """Makes a folder that cannot be read an error, which `os.walk` leaves out."""
    raise error


def _possible_names(image: ImageFile) -> list[str]:
    """Returns the file names that an annotation file may have for an image, the longest first."""
    if image.in_folder:
        return [image.name]
    parts = image.path.absolute().parts[1:]
    return ["/".join(parts[i:]) for i in range(len(parts))]


def _annotated(image: ImageFile, name: str, positions: Sequence[int], annotations: Annotations) -> ImageFile:
    """Returns the image with id and size. Raises ValueError unless `positions`, of its name, is one."""
    ids = [int(annotations.image_ids[position]) for position in positions]
    if len(ids) > 1:
        raise ValueError(
            f"{image.path}: may be image {ids[0]} or {ids[1]} of {annotations.path}, both named {name}; give the "
            "folder that its file names are relative to"
        )
    height, width = int(annotations.heights[positions[0]]), int(annotations.widths[positions[0]])
    return image._replace(image_id=ids[0], size=(height, width) if height and width else None)


def _log_unmatched(
    images: Sequence[ImageFile],
    unknown: Sequence[ImageFile],
    matched: dict[int, ImageFile],
    annotations: Annotations,
) -> None:
    if unknown:
        _LOG.warning(
            "%s names %s of the %s images; the others are left out, such as %s",
            annotations.path,
            f"{len(matched):,}",
            f"{len(images):,}",
            unknown[0].path,
        )
    missing = [image_id for image_id in annotations.image_ids.tolist() if image_id not in matched]
    if missing:
        _LOG.warning(
            "%s of the %s images of %s are not given, such as image %d: an evaluation counts their objects as missed",
            f"{len(missing):,}",
            f"{len(annotations.image_ids):,}",
            annotations.path,
            missing[0],
        )
