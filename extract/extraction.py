"""`python -m extract`: a detector, annotations and images → a RoI cache."""

from __future__ import annotations

import logging
import platform
import time
from contextlib import closing
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from itertools import chain, islice

import numpy as np
from tqdm import tqdm

from extract.cache.format import CacheError, Header, open_group, row_bytes
from extract.cache.reader import RoICache, open_cache
from extract.cache.writer import CacheWriter, create_cache, resume_cache
from extract.config import Config
from extract.data.annotations import Annotations, read_annotations
from extract.detectors import load_detector, registered_dataset
from extract.detectors.base import Detector
from extract.extractor import Extraction
from extract.rois import RoIs
from extract.utils.distributed import Coordinator, rank, world_size
from extract.utils.identity import flatten, refuse_changes
from extract.utils.prefetch import BackgroundWorker

log = logging.getLogger(__name__)
RUNTIME_FIELDS = {"out", "weights", "config_file", "annotations", "images", "train_annotations", "device", "batch_size"}
RUNTIME_FIELDS |= {"overwrite", "estimate"}
"""Options that leave the cache's content alone, or that the recorded sha256 stand for."""


def run(config: Config) -> RoICache | None:
    """Extracts, or resumes what was begun at `config.out`; returns the cache (None after an estimate).

    Processes that torchrun starts divide the blocks of images among them, and all return the same cache; its bytes do
    not depend on their number, but on a CPU the features' last bits do on that of PyTorch's threads (OMP_NUM_THREADS).

    Raises ValueError or FileNotFoundError naming the file and the field; nothing is written before the detector,
    the annotations and the first images have proved readable.
    """
    coordinator = Coordinator()
    with coordinator.raise_on_main_first():
        config, job, header, source = _prepare(config)
        there = None if config.overwrite or rank() else _begun(config, header)
        pending = None if rank() else _pending(job, there)
    pending = coordinator.broadcast(pending)
    if pending is None:
        return open_cache(config.out)
    if config.estimate and (rank() or not pending):
        return None
    # The first block is rank 0's, who makes the cache by its example.
    share = chain([] if rank() else pending[:1], coordinator.work_queue(pending[1:]))
    with BackgroundWorker() as worker, closing(job.forwards(share, worker.raise_if_failed)) as forwards:
        started = time.perf_counter()
        first = [(forwarded.block, job.finish(forwarded)) for forwarded in islice(forwards, 1)]
        if first and not rank():
            _log_estimate(job, first[0][1], time.perf_counter() - started)
        if config.estimate:
            return None
        with coordinator.main_process_first():
            writer = there or (resume_cache(config.out) if rank() else _create(config, header, job, first, source))
        with _progress(job, pending) as progress:
            before = progress.n

            def store(block: int, rois: list[RoIs]) -> None:
                writer.write_block(block, rois)
                progress.update(before + coordinator.add_finished(len(rois)) - progress.n)

            while first:  # emptied, for a block is large
                worker.submit(store, *first.pop())
            for forwarded in forwards:
                worker.submit(lambda one: store(one.block, job.finish(one)), forwarded)
            worker.wait()
    coordinator.barrier()
    with coordinator.main_process_first():
        return open_cache(config.out) if rank() else writer.finish()


def command(config: Config) -> None:
    """`run`, then what the cache holds."""
    if rank():
        logging.disable(logging.WARNING)  # rank 0 says it all
    try:
        cache = run(config)
    except KeyboardInterrupt:
        log.info("%s: stopped; the same command%s resumes", config.out, " without --overwrite" * config.overwrite)
        raise
    if cache and not rank():
        print(cache)


def _prepare(config: Config) -> tuple[Config, Extraction, Header, Annotations]:
    """What is read before anything is computed, and the annotations that the training counts come from."""
    config = _with_files(config)
    annotations = read_annotations(config.annotations)
    source = read_annotations(config.train_annotations) if config.train_annotations else annotations
    _same_classes(annotations, source)
    detector = load_detector(config)
    _fits(detector, annotations, config)
    job = Extraction(config, annotations, detector)
    _log_doubts(job, source)
    provenance = _provenance(config, annotations, source)
    return config, job, Header(config.split, config.level, detector.stages, detector.description, provenance), source


def _with_files(config: Config) -> Config:
    """The config with data sets named in the framework's catalog replaced by their files."""
    changes = {}
    for field in ("annotations", "train_annotations"):
        name = getattr(config, field)
        found = None if name is None or name.exists() else registered_dataset(config.detector, str(name))
        if found:
            changes[field] = found[0]
            if field == "annotations" and config.images is None:
                changes["images"] = found[1]
    config = replace(config, **changes)
    if config.images is None:
        raise ValueError(f"images: give the folder of the images that {config.annotations} names")
    return config


def _same_classes(annotations: Annotations, source: Annotations) -> None:
    columns = ["category_id", "name"]
    ours, theirs = (set(map(tuple, a.classes[columns].to_numpy())) for a in (annotations, source))
    if ours != theirs:
        example = sorted(ours ^ theirs)[0]
        owner = annotations.path if example in ours else source.path
        raise ValueError(
            f"categories of {annotations.path} and {source.path} differ in {len(ours ^ theirs)} entries, "
            f"such as {example[0]} {example[1]!r}, which only {owner} has"
        )


def _fits(detector: Detector, annotations: Annotations, config: Config) -> None:
    if detector.num_classes != len(annotations.classes):
        raise ValueError(
            f"detector {config.detector} has {detector.num_classes} classes besides background, "
            f"{annotations.path} has {len(annotations.classes)}"
        )
    if config.masks and not detector.has_masks:
        raise ValueError(f"masks: detector {config.detector} predicts no class-agnostic masks")


def _provenance(config: Config, annotations: Annotations, source: Annotations) -> dict:
    content = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in RUNTIME_FIELDS}
    content |= {"detector_options": list(config.detector_options)}
    return {
        "config": content,
        "annotations_sha256": annotations.sha256,
        "train_annotations_sha256": source.sha256,
        "versions": {"python": platform.python_version(), "numpy": version("numpy"), "zarr": version("zarr")},
    }


def _begun(config: Config, header: Header) -> RoICache | CacheWriter | None:
    """The finished cache at `out`, or the writer of an unfinished one. Raises CacheError for one of another config."""
    try:
        attributes = open_group(config.out, "r").attrs.asdict()
    except FileNotFoundError:
        return None
    there = Header.from_attributes(attributes)
    refuse_changes(config.out, _options(there), _options(header), CacheError)
    return open_cache(config.out) if attributes["complete"] else resume_cache(config.out)


def _pending(job: Extraction, there: RoICache | CacheWriter | None) -> list[int] | None:
    """The blocks to write, ascending; None if the cache is finished."""
    if isinstance(there, RoICache):
        log.info("%s is finished already", there.url)
        return None
    pending = there.pending() if there else list(range(job.blocks))
    if len(pending) < job.blocks:
        log.info("resuming: %d of %d blocks of images are done", job.blocks - len(pending), job.blocks)
    return pending


def _progress(job: Extraction, pending: list[int]) -> tqdm:
    """Rank 0's bar, of the images that all have done."""
    images, missing = len(job.positions), sum(len(job.images(block)) for block in pending)
    name = f"extract {job.config.split}"
    return tqdm(initial=images - missing, total=images, unit="image", desc=name, disable=True if rank() else None)


def _options(header: Header) -> dict[str, object]:
    """The header as flat options. Versions are left out: a newer library resumes what an older one has begun."""
    options = flatten(asdict(header)).items()
    return {name.removeprefix("provenance.config."): value for name, value in options if "version" not in name}


def _create(
    config: Config, header: Header, job: Extraction, first: list[tuple[int, list[RoIs]]], source: Annotations
) -> CacheWriter:
    import pandas as pd

    a = job.annotations
    images = pd.DataFrame(
        {
            "image_id": a.image_ids[job.positions],
            "height": a.heights[job.positions],
            "width": a.widths[job.positions],
            "flipped": job.flipped,
        }
    )
    fc_layers = job.detector.fc_layers(config.level)
    ((_, (template, *_)),) = first
    return create_cache(
        config.out, template, header, source.classes, images, job.capacity, fc_layers, overwrite=config.overwrite
    )


def _log_doubts(job: Extraction, source: Annotations) -> None:
    """What is allowed but seldom meant."""
    if job.config.split == "val" and source.sha256 == job.annotations.sha256:
        log.warning("training counts are taken from %s itself, the file evaluated on", source.path)
    if job.config.split == "val" and job.config.masks is None and not job.masks:
        log.warning("no masks are kept: the detector has none that are class-agnostic; evaluation will be of boxes")


def _log_estimate(job: Extraction, first: list[RoIs], seconds: float) -> None:
    images, rois, speed = len(job.positions), np.mean([len(r) for r in first]), world_size() * len(first) / seconds
    log.info(
        "%s images, about %.0f RoIs each at %s bytes: about %.2f GB; about %.1f minutes at %.1f images per second",
        f"{images:,}",
        rois,
        f"{row_bytes(first[0]):,}",
        images * rois * row_bytes(first[0]) / 1e9,
        images / speed / 60,
        speed,
    )
