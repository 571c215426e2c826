"""The folder of a learned fusion.

It holds each head in a folder of its own, 1, 2 …, and `learned.json`, which is written last: the weights, the sha256 of
each head's description, and that of the file's own content. At every moment it is the old or the new one, whole.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from calib.head_io import INFO_FILE, load_head, save_head
from calib.head_io import WEIGHTS_FILE as HEAD_FILE
from calib.heads import Head
from calib.scoring import Original
from extract.utils.errors import one_line, other_version, shown
from extract.utils.files import file_sha256, is_partial, write_bytes
from extract.utils.folders import put_in_place, settle, unused_partial
from extract.utils.locks import one_writer
from fuse.learned import LearnedFusion

LEARNED_FILE = "learned.json"
FORMAT, VERSION = "tailcal-learned", 1


class _Format(msgspec.Struct):
    """What every version of `LEARNED_FILE` begins with."""

    format: str
    version: int


class _File(_Format):
    """The content of `LEARNED_FILE`: `heads` are sha256 of their descriptions, `sha256` that of the other fields."""

    average: str
    activation: str
    heads: list[str]
    weights: list[list[float]]
    sha256: str = ""


def save_learned(fusion: LearnedFusion, path: str | Path) -> None:
    """Writes the folder of a learned fusion of the detector's own scores and heads, in place of an older one there.

    Raises ValueError for other scorers, or for a folder that has other files; InUseError if another process is writing
    the folder.
    """
    path = Path(os.path.realpath(path))
    original, *others = fusion.scorers
    heads = fusion.heads
    if not isinstance(original, Original) or not heads or len(heads) < len(others):
        names = ", ".join(scorer.name for scorer in fusion.scorers)
        raise ValueError(f"scorers are {names}, expected the original scores and trained heads")
    foreign = [one.name for one in (path.iterdir() if path.exists() else ()) if not _is_own(one)]
    if foreign:
        raise ValueError(f"{path}: has {min(foreign)}, which is no part of a learned fusion: give another folder")
    with one_writer(path):
        settle(path, lambda folder: (folder / LEARNED_FILE).is_file(), LEARNED_FILE)
        new = unused_partial(path)
        try:
            for number, head in enumerate(heads, 1):
                save_head(head, new / str(number))
            sums = [file_sha256(new / str(number) / INFO_FILE) for number in range(1, len(heads) + 1)]
            file = _File(FORMAT, VERSION, original.average, original.activation, sums, fusion.weights.tolist())
            file.sha256 = _content_sha256(file)
            write_bytes(new / LEARNED_FILE, msgspec.json.encode(file) + b"\n")
            put_in_place(new, path)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def load_learned(path: str | Path) -> LearnedFusion:
    """Loads the folder that `save_learned` or `python -m fuse select` wrote.

    Raises FileNotFoundError, or ValueError naming the file and what is wrong with it.
    """
    path = Path(path)
    file = path / LEARNED_FILE
    content = _read_file(file)
    if content.sha256 != _content_sha256(content):
        raise ValueError(f"{file}: damaged, or changed by hand: its content does not have the sha256 in it")
    folders = [path / str(number) for number in range(1, len(content.heads) + 1)]
    heads = [load_head(folder) for folder in folders]
    for folder, expected in zip(folders, content.heads, strict=True):
        if file_sha256(folder / INFO_FILE) != expected:
            raise ValueError(f"{folder}: is another head than the one that {file} was written with")
    try:
        original = Original.from_description({"stage_average": content.average, "activation": content.activation})
        weights = _checked_weights(content.weights, heads)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return LearnedFusion((original, *heads), weights, heads[0].instance_counts, heads[0].class_map)


def _read_file(file: Path) -> _File:
    raw = file.read_bytes()
    try:
        written = msgspec.json.decode(raw, type=_Format)
        if written.format != FORMAT:
            raise ValueError(f"format is {shown(written.format)}, expected {FORMAT!r}")
        if written.version != VERSION:
            raise ValueError(f"format {other_version(written.version, VERSION)}")
        return msgspec.json.decode(raw, type=_File)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not a learned fusion: {one_line(error)}") from None


def load_calibrated(path: str | Path) -> Head | LearnedFusion:
    """Loads a head, or a learned fusion, from its folder. Raises as `load_head` and `load_learned` do."""
    return load_learned(path) if (Path(path) / LEARNED_FILE).is_file() else load_head(path)


def files_of(path: str | Path) -> list[Path]:
    """Returns the files in the folder of a head or a learned fusion that decide its scores."""
    path = Path(path)
    if not (path / LEARNED_FILE).is_file():
        return [path / HEAD_FILE, path / INFO_FILE]
    folders = sorted(folder for folder in path.iterdir() if folder.is_dir())
    return [path / LEARNED_FILE, *(file for folder in folders for file in files_of(folder))]


def _checked_weights(rows: Sequence[Sequence[float]], heads: Sequence[Head]) -> np.ndarray:
    """Returns the weights (J+2, K) float32. Raises ValueError for another shape or values that are not finite."""
    if not heads:
        raise ValueError("heads is empty, expected at least 1")
    shape, lengths = (len(heads) + 3, heads[0].num_classes), {len(row) for row in rows}
    if len(rows) != shape[0] or lengths != {shape[1]}:
        raise ValueError(f"weights are {len(rows)} rows of {sorted(lengths)} numbers, expected shape {shape}")
    if not all(math.isfinite(value) for row in rows for value in row):
        raise ValueError("weights are not all finite")
    return np.array(rows, np.float32)


def _is_own(path: Path) -> bool:
    """Returns whether a file or folder is of those that a learned fusion's folder has."""
    return path.name == LEARNED_FILE or is_partial(path.name) or (path.name.isdigit() and path.is_dir())


def _content_sha256(file: _File) -> str:
    """Returns the sha256 of the fields but `sha256`."""
    fields = msgspec.to_builtins(file)
    del fields["sha256"]
    return hashlib.sha256(msgspec.json.encode(fields, order="sorted")).hexdigest()
