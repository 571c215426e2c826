"""The commands that are killed and limited, each on tiny inputs in a folder `source`; the output is `out` beside it."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors.torch import save_file

import calib
import calib.__main__
import extract.__main__
import fuse.__main__
from benchmarks.minilvis import make
from benchmarks.minilvis.detector import mask_rcnn
from extract import open_cache, write_cache
from tests.fuse_fixtures import write_tiny
from tests.toy_cache import toy_cache

UNEQUAL = ("metrics.jsonl", "tensorboard")
"""Files of a head that hold times."""
SOURCE, OUT = "source", "out"
CLASSES = 12


class Command(NamedTuple):
    """A command.

    Attributes:
        name: for the table.
        run: writes `OUT` in a folder that has `SOURCE`.
        old: writes the other output that is there when the command begins; None if nothing is.
        max_points: steps to kill it at, at most, since it takes long.
    """

    name: str
    run: Callable[[Path], object]
    old: Callable[[Path], object] | None = None
    max_points: int | None = None


class ObjectStore(LocalFileSystem):
    """What a process finds at `store://PATH` of another process: files that are only read and written as a whole."""

    protocol = "store"

    def __init__(self, **options: Any) -> None:
        super().__init__(auto_mkdir=True, **options)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return LocalFileSystem._strip_protocol(str(path).removeprefix("store://"))


fsspec.register_implementation("store", ObjectStore, clobber=True)


def write_sources(folder: Path) -> None:
    """Writes the inputs of all commands, in this process, so that its forks have imported what they need."""
    folder.mkdir()
    with redirect_stdout(io.StringIO()):
        _write_detector(folder / "detector")
        _write_inputs(folder)


def _write_inputs(folder: Path) -> None:
    toy_cache(folder / "train.zarr")
    extract.__main__.main(["export", str(folder / "train.zarr"), str(folder / "train.h5")])
    (folder / "fuse").mkdir()
    write_tiny(folder / "fuse")
    for name, mode in (("a", "original"), ("b", "calibrated")):
        _fuse(folder / "fuse", folder / "fuse" / name, "--mode", mode)
        shutil.copy(folder / "fuse" / name / "detections.json", folder / "fuse" / f"{name}.json")
    for module in ("calib.train", "extract.extraction", "extract.convert"):
        import_module(module)


def content_of(out: Path) -> dict[str, bytes]:
    """Returns the content of an output's files by name; of a file, its content."""
    if out.is_file():
        return {"": out.read_bytes()}
    files = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith(UNEQUAL)}


def _write_detector(folder: Path) -> None:
    """Writes a few images, and random weights of a detector."""
    make.make(make.Config(out=folder, classes=CLASSES, train_images=4, eval_images=4, size=112, workers=1))
    torch.manual_seed(0)
    save_file(mask_rcnn(CLASSES).state_dict(), folder / "random.safetensors")


def _detector(folder: Path) -> list[str]:
    """Returns the options that name the detector."""
    detector = folder / SOURCE / "detector"
    options = ["--detector", "torchvision:benchmarks.minilvis.detector:mask_rcnn", f"num_classes={CLASSES}"]
    return [*options, "--weights", str(detector / "random.safetensors"), "--device", "cpu"]


def _extract(folder: Path, *options: str) -> int:
    data = folder / SOURCE / "detector"
    arguments = ["--annotations", str(data / "val.json"), "--train-annotations", str(data / "train.json")]
    arguments += ["--images", str(data / "val"), "--split", "val", "--proposals", "20", "--level", "embedding"]
    return extract.__main__.main([*_detector(folder), *arguments, "--out", str(folder / OUT), *options])


def _to_store(command: Callable[..., object], *options: str) -> Callable[[Path], object]:
    """Returns a command that writes to an object store."""
    return lambda folder: command(folder, *options, out=f"store://{folder / OUT}")


def _convert(folder: Path, *options: str, out: str = "") -> int:
    arguments = ["convert", str(folder / SOURCE / "train.zarr"), out or str(folder / OUT), "--level", "embedding"]
    return extract.__main__.main([*arguments, "--device", "cpu", *options])


def _export(folder: Path) -> int:
    return extract.__main__.main(["export", str(folder / SOURCE / "train.zarr"), str(folder / OUT)])


def _import(folder: Path, *options: str, out: str = "") -> int:
    return extract.__main__.main(["import", str(folder / SOURCE / "train.h5"), out or str(folder / OUT), *options])


def _train(folder: Path, *options: str) -> int:
    arguments = ["--cache", str(folder / SOURCE / "train.zarr"), "--out", str(folder / OUT), "--head-type", "linear"]
    arguments += ["--steps", "4", "--checkpoint-every", "2", "--classes-per-step", "4", "--device", "cpu"]
    return calib.__main__.main([*arguments, *options])


def _write(folder: Path, overwrite: bool) -> None:
    """Writes a cache by the function of notebooks, which never resumes."""
    cache = open_cache(str(folder / SOURCE / "train.zarr"))
    images = [cache[i] for i in range(20 if overwrite else 8)]
    options = {"split": "train", "level": "pooled", "stages": cache.stages, "overwrite": overwrite}
    write_cache(str(folder / OUT), images, cache.classes.reset_index(), **options)


def _save_head(folder: Path, size: int) -> None:
    head = calib.load_head(folder / SOURCE / "fuse" / "head")
    for parameter in head.parameters():
        parameter.data.fill_(size)
    calib.save_head(head, folder / OUT)


def _fuse(source: Path, out: Path, *arguments: str) -> int:
    inputs = ["--cache", str(source / "val.zarr"), "--head", str(source / "head")]
    inputs += ["--annotations", str(source / "val.json"), "--out", str(out), "--bootstrap", "0"]
    return fuse.__main__.main([*arguments, *inputs])


def _detect(folder: Path, *options: str) -> int:
    return _fuse(folder / SOURCE / "fuse", folder / OUT, *options)


def _sweep(folder: Path, *options: str) -> int:
    return _fuse(folder / SOURCE / "fuse", folder / OUT, "sweep", *options)


def _merge(folder: Path, *options: str) -> int:
    source = (folder / SOURCE).resolve() / "fuse"  # run.json names the cache by its path
    files = [str(source / name) for name in ("a.json", "b.json")]
    arguments = ["--annotations", str(source / "val.json"), "--cache", str(source / "val.zarr")]
    return fuse.__main__.main(["merge", *files, *arguments, "--out", str(folder / OUT), "--bootstrap", "0", *options])


def _both(name: str, run: Callable[..., object], *old: str) -> list[Command]:
    """Returns a command without an output there, and with `--overwrite` over that of the options `old`."""
    return [
        Command(name, run),
        Command(f"{name} --overwrite", lambda f: run(f, "--overwrite"), lambda f: run(f, *old)),
    ]


COMMANDS = (
    Command("extract", _extract, max_points=40),
    Command("extract --overwrite", lambda f: _extract(f, "--overwrite"), lambda f: _write(f, False), max_points=40),
    Command("extract convert", _convert),
    Command("extract convert --overwrite", lambda f: _convert(f, "--overwrite"), lambda f: _write(f, False)),
    Command("extract import", _import),
    Command("extract import --overwrite", lambda f: _import(f, "--overwrite"), lambda f: _write(f, False)),
    Command("extract convert to an object store", _to_store(_convert)),
    Command("extract import --overwrite to an object store", _to_store(_import, "--overwrite")),
    Command("extract export", _export),
    Command("write_cache(overwrite=True)", lambda f: _write(f, True), lambda f: _write(f, False)),
    *_both("calib.train", _train, "--steps", "3"),
    Command("save_head over a head", lambda f: _save_head(f, 2), lambda f: _save_head(f, 1)),
    *_both("fuse", _detect, "--tail", "10"),
    *_both("fuse sweep", _sweep, "--iou-threshold", "0.4"),
    *_both("fuse merge", _merge, "--weights", "1", "2"),
)
