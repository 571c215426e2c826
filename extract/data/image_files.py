"""Where the images of an annotation file are in a folder, and how large they are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from extract.data.records import ImageRecord
from extract.utils.errors import shown

COCO_2014 = re.compile(r"COCO_\w+_(\d{12}\.jpg)")
"""Names of COCO 2014, which LVIS v0.5 uses; COCO 2017 has the same images under the number alone."""
READERS = 4
"""Threads that read image headers: network file systems are slow."""


def file_candidates(images: Sequence[ImageRecord]) -> list[tuple[str, ...]]:
    """Returns for each image the possible paths in the image folder, the likeliest first.

    The first is the image's own name. The others leave out folders, since many files name folders that users do not
    have; one that might be another image's is left out.
    """
    candidates = [_candidates(image) for image in images]
    owners: dict[str, str | None] = {}
    for names in candidates:
        for name in names:
            owners[name] = names[0] if owners.setdefault(name, names[0]) == names[0] else None
    return [tuple(n for n in names if n == names[0] or owners[n] == names[0]) for names in candidates]


def find_image(folder: Path, names: Sequence[str], allow_outside: bool = False) -> Path:
    """Returns the first of the names that exists in the folder; with `allow_outside`, also outside of it.

    Raises FileNotFoundError naming both, and ValueError for an existing file whose name leads out of the folder, as
    `../` does: annotations of strangers must not choose which files are read. Links in the folder may lead anywhere.
    """
    name = next((name for name in names if (folder / name).is_file()), None)
    if name is None:
        raise FileNotFoundError(f"{folder}: has no {' or '.join(names) or 'image without a file name'}")
    if not allow_outside and _leaves(folder, name):
        raise ValueError(f"{folder}: the file name {shown(name)} leads out of this folder; --allow-outside permits it")
    return folder / name


def check_namesakes(folder: Path, image_ids: np.ndarray, names: Sequence[tuple[str, ...]], use: Iterable[int]) -> None:
    """Raises FileNotFoundError for an image that is not there under its own path, but perhaps without its folders,
    where several images of the file would be.

    Args:
        folder: of the images.
        image_ids: (N,) int64.
        names: of `file_candidates`.
        use: positions of the images that will be read.
    """
    namesakes: dict[str, dict[str, int]] = {}
    for position, own in enumerate(names):
        if own:
            namesakes.setdefault(base_name(own[0]), {}).setdefault(own[0], position)
    for position in use:
        own = names[position]
        others = namesakes[base_name(own[0])] if own else {}
        base = folder / base_name(own[0]) if own else folder
        if len(others) > 1 and base.is_file() and not any((folder / name).is_file() for name in own):
            other, its_position = next(item for item in others.items() if item[0] != own[0])
            raise FileNotFoundError(
                f"{folder}: has no {own[0]}; {base.name} may be of image {image_ids[position]} or of image "
                f"{image_ids[its_position]} ({other}): give the folder that their paths begin in"
            )


def read_sizes(folder: Path, names: Iterable[Sequence[str]], allow_outside: bool = False) -> list[tuple[int, int]]:
    """Returns (height, width) of images from the headers of their files, upright by EXIF as `decode_image` reads them.

    Raises as `find_image` does, and ValueError for a file that is no image.
    """
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda own: _read_size(find_image(folder, own, allow_outside)), names))


def base_name(name: str) -> str:
    """Returns a path without its folders, whether it was written on Windows or not."""
    return re.split(r"[/\\]", name)[-1]


def _leaves(folder: Path, name: str) -> bool:
    """Returns whether a name leads out of the folder, links aside."""
    inside = os.path.abspath(folder)
    return os.path.commonpath([inside, os.path.abspath(folder / name)]) != inside


def _read_size(path: Path) -> tuple[int, int]:
    from extract.data.decoding import read_orientation  # here, so that evaluation does not import PIL

    orientation, (height, width) = read_orientation(path)
    return (width, height) if orientation >= 5 else (height, width)


def _candidates(image: ImageRecord) -> tuple[str, ...]:
    """Returns an image's possible paths. LVIS v1 has COCO URLs only."""
    base = base_name(image.file_name or image.coco_url)
    folder = "/".join(image.coco_url.rsplit("/", 2)[-2:])
    coco = COCO_2014.fullmatch(base)
    names = (image.file_name, image.file_name.replace("\\", "/"), folder, base, coco[1] if coco else "")
    return tuple(dict.fromkeys(name for name in names if name))
