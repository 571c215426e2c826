"""The commands that are killed and limited, each on tiny inputs in a folder `source`; the output is `out` beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

import calib
import calib.__main__
import extract.__main__
import fuse.__main__
from benchmarks.paper.setups import MASK_RCNN
from benchmarks.reliability.children import Outcome, run_child, run_ranks
from benchmarks.reliability.sources import CLASSES, OUT, PAINTER, SOURCE, detector_options, run_extract, run_fuse
from extract import open_cache, write_cache


class Command(NamedTuple):
    """A command.

    Attributes:
        name: for the table.
        run: writes `OUT` in a folder that has `SOURCE`.
        old: writes the other output that is there when the command begins; None if nothing is.
        keeps_old: whether that must be there, whole, until the new one is; else the command adds to it or repairs it.
        ranks: processes of torchrun that run it.
        watched: the process of these that is killed.
    """

    name: str
    run: Callable[[Path], object]
    old: Callable[[Path], object] | None = None
    keeps_old: bool = True
    ranks: int = 1
    watched: int = 0

    @property
    def must_keep_old(self) -> bool:
        """Whether there is an old output, and it must stay until the new one is whole."""
        return self.old is not None and self.keeps_old

    def start(self, folder: Path, *, step: int | None = None, seconds: float | None = None) -> Outcome:
        """Runs the command in forks of this process; kills it before a step of its work, or after so many seconds."""
        if self.ranks == 1:
            return run_child(partial(self.run, folder), folder, step=step, seconds=seconds)
        return run_ranks(partial(self.run, folder), folder, self.ranks, self.watched, step=step, seconds=seconds)


class ObjectStore(LocalFileSystem):
    """What a process finds at `store://PATH` of another process: files that are only read and written as a whole."""

    protocol = "store"

    def __init__(self, **options: Any) -> None:
        super().__init__(auto_mkdir=True, **options)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return LocalFileSystem._strip_protocol(str(path).removeprefix("store://"))


fsspec.register_implementation("store", ObjectStore, clobber=True)


def _detector(folder: Path) -> list[str]:
    """Returns the options that name the detector."""
    weights = folder / SOURCE / "detector" / "random.safetensors"
    return detector_options([MASK_RCNN, f"num_classes={CLASSES}"], weights)


def _extract(folder: Path, *options: str) -> int:
    return run_extract(folder / SOURCE / "detector", folder / OUT, *_detector(folder), *options)


def _damaged(folder: Path) -> None:
    """Extracts a cache and changes a byte of its boxes."""
    _extract(folder)
    file = max((folder / OUT / "box").rglob("c*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _repair(folder: Path) -> int:
    """Marks what is damaged, if that was not done before, extracts it again, and verifies the whole."""
    verify = ["verify", str(folder / OUT)]
    extract.__main__.main([*verify, "--repair"])
    return _extract(folder) or extract.__main__.main(verify)


def _link_cache(folder: Path) -> None:
    """Links a cache, so that masks are painted beside the link."""
    (folder / OUT).mkdir()
    (folder / OUT / "val.zarr").symlink_to(folder / SOURCE / "painting" / "val.zarr")


def _paint(folder: Path) -> int:
    """Runs `fuse` with a detector that paints masks beside the cache."""
    data, source, out = folder / SOURCE / "detector", folder / SOURCE / "painting", folder / OUT
    arguments = ["--cache", str(out / "val.zarr"), "--mode", "original", "--max-detections", "10", "--bootstrap", "0"]
    arguments += ["--annotations", str(data / "val.json"), "--images", str(data / "val"), "--out", str(out / "run")]
    return fuse.__main__.main([*arguments, *detector_options(PAINTER, source / "random.safetensors")])


def _extract_train(folder: Path) -> int:
    """Extracts several blocks of images, which processes share."""
    data = folder / SOURCE / "detector"
    arguments = ["--annotations", str(data / "train.json"), "--images", str(data / "train"), "--split", "train"]
    arguments += ["--proposals", "20", "--level", "embedding", "--out", str(folder / OUT)]
    return extract.__main__.main([*_detector(folder), *arguments])


def _predict(folder: Path, *options: str) -> int:
    data = (folder / SOURCE).resolve() / "detector"  # predictions have the paths of images
    arguments = ["--images", str(data / "val"), "--head", str(data / "head"), "--save-images", "--max-detections", "10"]
    return fuse.__main__.main(["predict", *_detector(folder), *arguments, "--out", str(folder / OUT), *options])


def _export_detector(folder: Path, *options: str) -> int:
    head = str(folder / SOURCE / "detector" / "head")
    arguments = ["--head", head, "--out", str(folder / OUT), *options]
    return fuse.__main__.main(["export", *_detector(folder), *arguments])


def _select(folder: Path, *options: str) -> int:
    source = folder / SOURCE / "select"
    caches = {name: source / f"{name.replace('cache', 'val')}.zarr" for name in ("cache", "train", "holdout")}
    files = {"annotations": source / "val.json", "train-annotations": source / "train.json", "out": folder / OUT}
    arguments = [str(part) for name, path in (caches | files).items() for part in (f"--{name}", path)]
    arguments += ["--methods", "norcal", "crt", "--steps", "3", "--bootstrap", "0"]
    return fuse.__main__.main(["select", *arguments, *options])


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


def _detect(folder: Path, *options: str) -> int:
    return run_fuse(folder / SOURCE / "fuse", folder / OUT, *options)


def _sweep(folder: Path, *options: str) -> int:
    return run_fuse(folder / SOURCE / "fuse", folder / OUT, "sweep", *options)


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
    Command("extract", _extract),
    Command("extract --overwrite", lambda f: _extract(f, "--overwrite"), lambda f: _write(f, False)),
    Command("extract verify --repair, extract", _repair, _damaged, keeps_old=False),
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
    Command("fuse, painting masks", _paint, _link_cache, keeps_old=False),
    *_both("fuse sweep", _sweep, "--iou-threshold", "0.4"),
    *_both("fuse merge", _merge, "--weights", "1", "2"),
    *_both("fuse select", _select, "--seed", "1"),
    *_both("fuse predict", _predict, "--tail", "10"),
    Command("fuse export", _export_detector),
    Command("fuse export --fold", lambda f: _export_detector(f, "--fold")),
    Command("extract under torchrun, rank 0 killed", _extract_train, ranks=2),
    Command("extract under torchrun, rank 1 killed", _extract_train, ranks=2, watched=1),
    Command("calib.train under torchrun, rank 0 killed", _train, ranks=2),
    Command("calib.train under torchrun, rank 1 killed", _train, ranks=2, watched=1),
)


def chosen(name: str) -> list[tuple[int, Command]]:
    """Returns the command of this name, or else all whose names have it, each with its place in `COMMANDS`."""
    numbered = list(enumerate(COMMANDS))
    return [one for one in numbered if one[1].name == name] or [one for one in numbered if name in one[1].name]
