"""The image files of `python -m fuse predict`: found in folders, and matched with an annotation file."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from extract.data.annotations import Annotations
from extract.utils.folders import partial_folder

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

    @property
    def key(self) -> str:
        """Path and image id: an annotation file may have a file under several ids."""
        return str(self.path) if self.image_id is None else f"{self.image_id} {self.path}"


def find_images(inputs: Sequence[Path], out: Path) -> list[ImageFile]:
    """Returns the given files and the images in the given folders, each once, sorted within a folder.

    Files of other kinds, hidden files and folders, and what is in `out`, or beside it to take its place, are left out;
    the number of files is logged.

    Raises FileNotFoundError for what does not exist, ValueError for a folder without images or one that is `out`.
    """
    found: dict[str, ImageFile] = {}
    for given in inputs:
        if given.is_dir():
            images: list[ImageFile] = list(_images_in(given, out))
        elif given.is_file():
            images = [ImageFile(given, given.name, in_folder=False)]
        else:
            raise FileNotFoundError(
                f"{given}: no such image or folder; options of the framework follow another option than --images"
            )
        for image in images:
            found.setdefault(os.path.abspath(image.path), image)
    return list(found.values())


def match_annotations(images: Sequence[ImageFile], annotations: Annotations) -> list[ImageFile]:
    """Returns the images that the annotation file names, with their ids and sizes; logs how many are left out.

    As in extraction, file names are relative to the folder that was given, and the likeliest of an image's possible
    names is taken. Of a file that was given itself, the end of its path must be a name; the longest such end decides.

    Raises ValueError if two files are the same image, or none is in the annotation file.
    """
    positions: dict[str, list[int]] = {}
    for position, names in enumerate(annotations.file_names):
        for name in names:
            positions.setdefault(name, []).append(position)
    matched: dict[int, tuple[int, ImageFile]] = {}
    for image in images:
        found = next((name for name in _possible_names(image) if name in positions), None)
        for position in positions[found] if found else ():
            rank = annotations.file_names[position].index(str(found))
            other_rank, other = matched.get(position, (rank + 1, image))
            if rank == other_rank:
                image_id = annotations.image_ids[position]
                raise ValueError(f"{other.path} and {image.path}: both are image {image_id} of {annotations.path}")
            if rank < other_rank:
                matched[position] = rank, _annotated(image, position, annotations)
    if not matched:
        example = next(iter(annotations.file_names[0]), "")
        raise ValueError(
            f"images: {annotations.path} names none of the {len(images):,} images, such as {images[0].name}; it names "
            f"such as {example}; give the folder that its file names are relative to"
        )
    _log_unmatched(images, {image.path for _, image in matched.values()}, matched.keys(), annotations)
    return [image for _, image in matched.values()]


def _images_in(folder: Path, out: Path) -> Iterator[ImageFile]:
    if out.resolve() == folder.resolve():
        raise ValueError(f"out is {out}, which is a folder of images: give another folder")
    left_out, found = [], 0
    visited = {out.resolve(), partial_folder(out.resolve()), folder.resolve()}
    for parent, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        folders[:] = sorted(name for name in folders if name[0] != "." and _is_new(Path(parent, name), visited))
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


def _is_new(folder: Path, visited: set[Path]) -> bool:
    """Adds a folder to those visited, and returns whether it was not there: links may lead to it again."""
    real = folder.resolve()
    if real in visited:
        return False
    visited.add(real)
    return True


def _raise(error: OSError) -> None:
    """Makes a folder that cannot be read an error, which `os.walk` leaves out."""
    raise error


def _possible_names(image: ImageFile) -> list[str]:
    """Returns the file names that an annotation file may have for an image, the longest first."""
    if image.in_folder:
        return [image.name]
    parts = image.path.absolute().parts[1:]
    return ["/".join(parts[i:]) for i in range(len(parts))]


def _annotated(image: ImageFile, position: int, annotations: Annotations) -> ImageFile:
    """Returns the image with the id and the size of an image of the annotation file."""
    height, width = int(annotations.heights[position]), int(annotations.widths[position])
    size = (height, width) if height and width else None
    return image._replace(image_id=int(annotations.image_ids[position]), size=size)


def _log_unmatched(images: Sequence[ImageFile], used: Set[Path], positions: Set[int], annotations: Annotations) -> None:
    """Logs how many images the annotation file does not name, and how many of its images are not given."""
    unknown = [image for image in images if image.path not in used]
    if unknown:
        _LOG.warning(
            "%s names %s of the %s images; the others are left out, such as %s",
            annotations.path,
            f"{len(used):,}",
            f"{len(images):,}",
            unknown[0].path,
        )
    missing = [position for position in range(len(annotations.image_ids)) if position not in positions]
    if missing:
        _LOG.warning(
            "%s of the %s images of %s are not given, such as image %d: an evaluation counts their objects as missed",
            f"{len(missing):,}",
            f"{len(annotations.image_ids):,}",
            annotations.path,
            annotations.image_ids[missing[0]],
        )
