"""The predictions of a run as JSON lines, one per image, from which an interrupted run resumes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from extract.utils.errors import one_line
from extract.utils.files import replacing, write_bytes
from extract.utils.identity import refuse_changes

PREDICTIONS_FILE, LINES_FILE = "predictions.json", "predictions.partial.jsonl"


class _Line(msgspec.Struct):
    image: str
    detections: list[msgspec.Raw]


class PredictionLines:
    """Predictions of the images that are done.

    The first line of the file has the options; each other line has one image. A line that a kill has cut short is
    dropped.
    """

    def __init__(self, folder: Path, options: Mapping[str, str], overwrite: bool = False) -> None:
        """Opens the file in the folder, or begins it; with `overwrite`, also in place of one of other options.

        Raises ValueError if it was made with other options.
        """
        self._path = folder / LINES_FILE
        self._spans: dict[str, tuple[int, int]] = {}
        if not self._path.exists():
            self._begin(options)
        try:
            self._read(folder, options)
        except ValueError:
            if not overwrite:
                raise
            self._begin(options)
            self._read(folder, options)

    def _begin(self, options: Mapping[str, str]) -> None:
        write_bytes(self._path, msgspec.json.encode(options) + b"\n")

    def _read(self, folder: Path, options: Mapping[str, str]) -> None:
        """Finds the images that are done, and removes a last line that is cut short."""
        self._spans, start = {}, 0
        with self._path.open("rb") as file:
            for line in file:
                if start == 0:
                    refuse_changes(folder, self._decode(line, dict[str, str]), options)
                elif line.endswith(b"\n"):
                    self._spans[self._decode(line, _Line).image] = (start, len(line))
                else:
                    break
                start += len(line)
        os.truncate(self._path, start)

    def __contains__(self, image: str) -> bool:
        return image in self._spans

    def __len__(self) -> int:
        return len(self._spans)

    def append(self, image: str, detections: Sequence[Mapping[str, object]]) -> None:
        """Adds the predictions of an image."""
        line = msgspec.json.encode({"image": image, "detections": detections}) + b"\n"
        with self._path.open("ab", buffering=0) as file:
            self._spans[image] = (file.tell(), len(line))
            file.write(line)

    def finish(self, images: Sequence[str], path: Path) -> int:
        """Writes the images' predictions, in this order, as one JSON array; removes the lines; returns its length."""
        count = 0
        with replacing(path) as partial, partial.open("wb") as target, self._path.open("rb") as lines:
            target.write(b"[")
            for image in images:
                start, length = self._spans[image]
                lines.seek(start)
                for detection in self._decode(lines.read(length), _Line).detections:
                    target.write((b"," if count else b"") + bytes(detection))
                    count += 1
            target.write(b"]")
        self._path.unlink()
        return count

    def _decode(self, line: bytes, kind: type) -> Any:
        try:
            return msgspec.json.decode(line, type=kind)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{self._path}: damaged: {one_line(error)}; --overwrite starts anew") from None
