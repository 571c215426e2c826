"""`python -m extract`: a detector, annotations and images → a RoI cache."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import chain, islice

import numpy as np
import pandas as pd
from tqdm import tqdm

from extract.cache.creation import create_cache
from extract.cache.derived import why_stored
from extract.cache.format import row_bytes, row_shapes
from extract.cache.location import writing_place
from extract.cache.opening import open_cache
from extract.cache.reader import RoICache
from extract.cache.writer import CacheWriter, resume_cache
from extract.config import Config
from extract.extractor import BlockOutput, Extractor
from extract.memory_plan import plan_memory
from extract.preparation import Job, find_existing, prepare
from extract.projection import blank_projections, fit_on_images
from extract.rois import RoIs
from extract.uses import next_command
from extract.utils.distributed import Coordinator, is_main_process, world_size
from extract.utils.locks import one_writer
from extract.utils.prefetch import BackgroundWorker
from extract.utils.progress import progress_bar

log = logging.getLogger(__name__)


def run(config: Config) -> RoICache | None:
    """Extracts, or resumes what was begun at `config.out`; returns the cache, None after an estimate.

    The processes that torchrun starts share the blocks of images, and all return the same cache. Its bytes do not
    depend on their number; on CPUs the last bits of features depend on PyTorch's number of threads (OMP_NUM_THREADS).

    Raises ValueError or FileNotFoundError naming the file and the field. Nothing is written before the detector, the
    annotations and the first images have proved readable.
    """
    with ExitStack() as lock:
        return _run(config, Coordinator(), lock)


def _run(config: Config, coordinator: Coordinator, lock: ExitStack) -> RoICache | None:
    """Extracts as `run` does; takes the lock of the cache once its inputs have proved readable."""
    with coordinator.raise_on_main_first():
        job = prepare(config)
        if not config.estimate:
            lock.enter_context(one_writer(config.out))
        writer, pending = _resume(config, job) if is_main_process() else (None, None)
        if pending:
            job.extractor.check_inference(pending[0])
    pending = coordinator.broadcast(pending)
    if pending is None:
        return open_cache(config.out)
    if config.estimate and not (pending and is_main_process()):
        return None
    if config.level == "hidden":
        writer = _set_projections(config, job, writer, coordinator)
    plan = plan_memory(job.extractor)
    job.extractor.batch_size = plan.batch_size
    # Rank 0 takes the first block in any case: the shapes of its RoIs are those of the cache, which rank 0 creates.
    blocks = chain(pending[:1] if is_main_process() else [], coordinator.work_queue(pending[1:]))
    with BackgroundWorker() as worker, closing(job.extractor.forward_blocks(blocks, worker.raise_if_failed)) as outputs:
        started = time.perf_counter()
        first = list(islice(outputs, 1))
        if first and is_main_process():
            _log_estimate(job, first[0].rois, time.perf_counter() - started)
        if config.estimate:
            return None
        with coordinator.main_process_first():
            if writer is None:
                writer = (
                    _create(config, job, first[0].rois[0])
                    if is_main_process()
                    else resume_cache(writing_place(config.out, config.overwrite))
                )
        with _progress_bar(job.extractor, pending) as bar:
            _store(job.extractor, writer, _consume(first, outputs), worker, coordinator, bar, plan.overlap)
    job.extractor.log_turned()
    coordinator.barrier()
    with coordinator.main_process_first():
        return writer.finish() if is_main_process() else open_cache(config.out)


def _set_projections(
    config: Config, job: Job, writer: CacheWriter | None, coordinator: Coordinator
) -> CacheWriter | None:
    """Sets the extractor's projections: taken over, of a cache that was begun, or fitted on a sample of images.

    Rank 0 creates the cache with the projections that it has fitted, from where the other processes take them.
    """
    extractor = job.extractor
    if job.projections or not config.projection:
        extractor.set_projections(job.projections)
    elif config.estimate:
        extractor.set_projections(blank_projections(extractor.fc_layers, config.projection))
    else:
        with coordinator.main_process_first():
            if writer is None and is_main_process():
                projections, template = fit_on_images(extractor, config)
                extractor.set_projections(projections)
                writer = _create(config, job, template)
            elif writer is None:
                writer = resume_cache(writing_place(config.out, config.overwrite))
        extractor.set_projections(writer.projections)
    return writer


def command(config: Config) -> None:
    """Runs the extraction and prints what the cache holds."""
    if not is_main_process():
        logging.disable(logging.WARNING)  # rank 0 logs the same
    try:
        cache = run(config)
    except KeyboardInterrupt:
        log.info("%s: stopped; the same command resumes", config.out)
        raise
    if cache and is_main_process():
        print(cache)
        log.info("next: %s", next_command(config.split, config.level, config.out, str(config.annotations)))


def _resume(config: Config, job: Job) -> tuple[CacheWriter | None, list[int] | None]:
    """Returns the writer of a cache that was begun, if any, and the blocks to write, ascending; None if it is finished.

    Raises CacheError if the cache was made with other options.
    """
    existing = find_existing(config.out, job.header, config.overwrite)
    if isinstance(existing, RoICache):
        log.info("%s is finished already", existing.url)
        return None, None
    blocks = job.extractor.num_blocks
    pending = existing.pending() if existing else list(range(blocks))
    if len(pending) < blocks:
        log.info("resuming: %d of %d blocks of images are done", blocks - len(pending), blocks)
    return existing, pending


def _create(config: Config, job: Job, template: RoIs) -> CacheWriter:
    """Creates the cache; for `template` see `create_cache`."""
    extractor, a = job.extractor, job.extractor.annotations
    images = pd.DataFrame(
        {
            "image_id": a.image_ids[extractor.positions],
            "height": a.heights[extractor.positions],
            "width": a.widths[extractor.positions],
            "flipped": extractor.flipped,
        }
    )
    return create_cache(
        config.out,
        template,
        job.header,
        job.classes,
        images,
        extractor.max_rois_per_image,
        extractor.fc_layers,
        config.overwrite,
        extractor.projections,
    )


def _consume(first: list[BlockOutput], rest: Iterator[BlockOutput]) -> Iterator[BlockOutput]:
    """Yields `first`, then `rest`; empties the list, because a block is large and must not outlive its storing."""
    while first:
        yield first.pop()
    yield from rest


def _store(
    extractor: Extractor,
    writer: CacheWriter,
    outputs: Iterator[BlockOutput],
    worker: BackgroundWorker,
    coordinator: Coordinator,
    bar: tqdm,
    overlap: bool,
) -> None:
    """Labels and writes each block in the background; with `overlap` while the detector processes the next one."""
    before = bar.n

    def store(output: BlockOutput) -> None:
        writer.write_block(output.block, extractor.finish_block(output))
        bar.update(before + coordinator.add_finished(len(output.rois)) - bar.n)

    for output in outputs:
        worker.submit(store, output)
        if not overlap:
            del output
            worker.wait()
    worker.wait()


def _progress_bar(extractor: Extractor, pending: list[int]) -> tqdm:
    """Returns the progress bar of the images that all processes have finished; only rank 0 shows it."""
    images, missing = len(extractor.positions), sum(len(extractor.block_images(block)) for block in pending)
    name = f"extract {extractor.config.split}"
    return progress_bar(initial=images - missing, total=images, unit="image", desc=name, shown=is_main_process())


def _log_estimate(job: Job, first: list[RoIs], seconds: float) -> None:
    """Logs the size of the cache and the time for all images, from one block's RoIs and the time it took."""
    extractor = job.extractor
    logits = why_stored(first[0], job.header, extractor.fc_layers) is not None
    images, rois = len(extractor.positions), np.mean([len(r) for r in first])
    size = row_bytes(row_shapes(first[0], logits))
    speed = world_size() * len(first) / seconds
    log.info(
        "%s images, about %.0f RoIs each at %s bytes: about %.2f GB; about %.1f minutes at %.3g images per second",
        f"{images:,}",
        rois,
        f"{size:,}",
        images * rois * size / 1e9,
        images / speed / 60,
        speed,
    )
