"""The folder of `python -m fuse predict`: its drawings, and where new predictions are written."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image as PILImage
from PIL.PngImagePlugin import PngInfo

from extract.utils.files import is_partial, replacing
from extract.utils.folders import can_be_renamed, partial_folder, settle
from fuse.commands.image_files import ImageFile
from fuse.commands.predictions import LINES_FILE, PREDICTIONS_FILE

SOFTWARE = "Software", "tailcal fuse predict"
"""Key and text in a drawing, by which it is told from other images in the folder."""
_MARK = b"tEXt" + "\0".join(SOFTWARE).encode()
_HEADER_BYTES = 200


def drawing_file(folder: Path, image: ImageFile) -> Path:
    """Returns where an image is drawn."""
    return (folder / image.name).with_suffix(".png")


def save_drawing(drawn: PILImage.Image, path: Path) -> None:
    """Replaces a drawing."""
    info = PngInfo()
    info.add_text(*SOFTWARE)
    with replacing(path) as partial:
        drawn.save(partial, format="png", pnginfo=info)


def refuse_finished(out: Path, overwrite: bool) -> None:
    """Raises ValueError for a folder that has finished predictions, unless they are to be replaced.

    Whoever calls it holds the lock of `out`. Lines older than the predictions are left by a process that was killed
    when it had finished, and are removed; newer ones are of predictions that were being replaced.
    """
    predictions, lines = out / PREDICTIONS_FILE, out / LINES_FILE
    if not predictions.exists() or overwrite:
        return
    if lines.exists() and lines.stat().st_mtime_ns <= predictions.stat().st_mtime_ns:
        lines.unlink()
    raise ValueError(f"{out}: holds {PREDICTIONS_FILE}; use --overwrite")


def writing_folder(out: Path, overwrite: bool) -> Path:
    """Returns where a run writes; whoever calls it holds the lock of `out`.

    With `overwrite` of finished predictions that is a folder beside `out`, whose place it takes in the end; or `out`
    itself if that also has other files, which stay. Finishes or undoes a replacement that was killed at its end.

    Raises ValueError as `refuse_finished` does.
    """
    path = Path(os.path.realpath(out))
    settle(path, lambda folder: (folder / PREDICTIONS_FILE).is_file(), PREDICTIONS_FILE)
    refuse_finished(out, overwrite)
    beside = (path / PREDICTIONS_FILE).exists() and can_be_renamed(path) and _has_only_own_files(path)
    return partial_folder(path) if beside else out


def _has_only_own_files(path: Path) -> bool:
    """Returns whether all files in a folder are predictions and drawings of this command."""
    return all(_is_own(Path(parent, name)) for parent, _, names in os.walk(path) for name in names)


def _is_own(file: Path) -> bool:
    if file.name in (PREDICTIONS_FILE, LINES_FILE) or is_partial(file.name):
        return True
    with file.open("rb") as content:
        return _MARK in content.read(_HEADER_BYTES)
