"""Finds out which output of a detector each category of an annotation file is.

The names of the detector's classes, which its framework or the user gives, are matched with those of the file. Without
names, outputs are categories by ascending id; torchvision's may be category ids themselves. Contradictions are refused.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from extract.class_names import match_names
from extract.config import Config
from extract.data.annotations import Annotations
from extract.data.class_map import ClassMap
from extract.detectors.base import NO_CLASS, Detector, OwnClasses, named_classes
from extract.utils.errors import listed

log = logging.getLogger(__name__)
NUMBERED_BY_LISTING = "mmdet"
"""Framework that numbers classes in the order in which a file lists its categories, whatever their ids and whatever the
order of its `classes` (`CocoDataset.load_data_list` of mmdetection 3.3: "The order of returned `cat_ids` will not
change with the order of the `classes`")."""
NUMBERED_BY_ID = "torchvision"
"""Framework whose own detectors have an output for each category id from 1, gaps included: 90 for COCO's 80."""
BACKGROUND_NAMES = {"background", "__background__", "bg"}


def find_class_map(detector: Detector, annotations: Annotations, config: Config) -> ClassMap | None:
    """Returns the detector's output for each class of the annotations; None if output i is class i.

    Args:
        detector: as loaded.
        annotations: of the training set, whose class table the cache will have.
        config: `classes` and `class_order` come before what the framework tells.

    Raises ValueError naming the first class in which detector and file differ, FileNotFoundError.
    """
    table, own = annotations.classes, named_classes(detector)
    if config.classes is not None:
        own = OwnClasses(_read_names(config.classes, detector), str(config.classes))
    elif config.class_order == "name" and own is None:
        raise ValueError(f"class_order is name, but nothing names the classes of {_name(detector)}: give --classes")
    elif config.class_order in ("id", "file"):
        own = None
    if own is None:
        outputs = _outputs_without_names(detector, annotations, config.class_order)
    else:
        outputs = match_names(own, table, annotations.path)
        if config.classes is None and config.class_order is None:
            _refuse_other_listing(detector, own, outputs, annotations)
            _refuse_other_ids(own, outputs, annotations)
    class_map = ClassMap(tuple(outputs.tolist()), detector.num_classes)
    if not class_map.is_identity:
        _log(class_map, own, table, annotations.path)
    return None if class_map.is_identity else class_map


def _outputs_without_names(detector: Detector, annotations: Annotations, order: str | None) -> np.ndarray:
    """Returns the output of each class, (K,) int64, by the order of the file or by ascending category id."""
    ids, k = annotations.classes["category_id"].to_numpy(), detector.num_classes
    by_id = detector.description.get("framework") == NUMBERED_BY_ID and ids[0] >= 1 and ids[-1] == k > len(ids)
    if by_id and order != "file":
        log.info("output i of %s is taken as category i, up to %d: %s", _name(detector), k, _REMEDY)
        return ids - 1
    if k != len(ids):
        raise ValueError(
            f"{_name(detector)} has {k} classes besides background, {annotations.path} has {len(ids)} categories, and "
            "nothing says which is which: --classes names.txt gives names, one per line in the order of the outputs, "
            "N/A for an output that is no category"
        )
    if order == "file":
        return np.argsort(annotations.listed)
    if order is None:
        ascending = "nothing names the classes of %s: its outputs are taken as categories by ascending id; %s"
        risky = detector.description.get("framework") == NUMBERED_BY_LISTING and bool(
            (np.diff(annotations.listed) < 0).any()
        )
        log.log(logging.WARNING if risky else logging.INFO, ascending, _name(detector), _REMEDY)
    return np.arange(k)


def _refuse_other_listing(detector: Detector, own: OwnClasses, outputs: np.ndarray, annotations: Annotations) -> None:
    """Raises ValueError if the framework numbers the file's categories otherwise than the names do.

    A detector with outputs that are no category of the file was not trained on it, so its names are right.
    """
    if detector.description.get("framework") != NUMBERED_BY_LISTING or (outputs >= 0).sum() < detector.num_classes:
        return
    listed = annotations.listed[outputs[annotations.listed] >= 0]
    differing = np.flatnonzero(outputs[listed] != np.arange(len(listed)))
    if len(differing):
        first = int(differing[0])
        name = annotations.classes["name"].iloc[listed[first]]
        raise ValueError(
            f"{own.source}: class {first} is {own.names[first]!r}, but {name!r} is listed there in {annotations.path}, "
            "whose order mmdetection takes whatever its names: give --class-order file if the detector was trained on "
            "this file, --class-order name if its names are right"
        )


def _refuse_other_ids(own: OwnClasses, outputs: np.ndarray, annotations: Annotations) -> None:
    """Raises ValueError if names and category ids of the detector's classes are those of the file, but differently."""
    by_id = {
        i: output for output, (i, name) in enumerate(zip(own.category_ids, own.names, strict=False)) if name != NO_CLASS
    }
    ids = annotations.classes["category_id"].tolist()
    if by_id.keys() != set(ids):
        return  # the file numbers its categories otherwise
    for c, category_id in enumerate(ids):
        if by_id[category_id] != outputs[c]:
            raise ValueError(
                f"{own.source}: category {category_id} is {own.names[by_id[category_id]]!r} there and "
                f"{annotations.classes['name'].iloc[c]!r} in {annotations.path}: give --class-order name or id"
            )


def _read_names(path: Path, detector: Detector) -> tuple[str, ...]:
    """Reads one name per line, in the order of the outputs, with or without background."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of class names")
    try:
        names = [line.strip() for line in path.read_text("utf-8-sig").rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file of class names: {error}") from None
    k = detector.num_classes
    if len(names) == k + 1:
        ends = [i for i in (0, -1) if names[i].lower() in BACKGROUND_NAMES]
        if ends:
            names.pop(ends[0])
    if len(names) != k:
        raise ValueError(f"{path}: has {len(names)} names, one per line, {_name(detector)} has {k} classes")
    return tuple(name or NO_CLASS for name in names)


def _log(class_map: ClassMap, own: OwnClasses | None, table: pd.DataFrame, path: Path) -> None:
    """Logs which outputs are other classes, and warns of outputs and categories that have no counterpart."""
    names, ids = table["name"].tolist(), table["category_id"].tolist()
    moved = [i for i, c in enumerate(class_map.classes.tolist()) if c not in (i, -1)]
    if own is not None and moved:
        pairs = [f"{i} is category {ids[class_map.classes[i]]} {names[class_map.classes[i]]!r}" for i in moved]
        log.info("classes by name, from %s: output %s", own.source, listed(pairs))
    surplus = class_map.surplus.tolist()
    if own is not None:
        surplus = [i for i in surplus if own.names[i] != NO_CLASS]
    if surplus:
        examples = [str(i) if own is None else f"{i} {own.names[i]!r}" for i in surplus]
        text = "%d of %d outputs are no category of %s and never detected, such as output %s"
        log.warning(text, len(surplus), class_map.num_outputs, path, listed(examples))
    if len(class_map.missing):
        examples = [f"{ids[c]} {names[c]!r}" for c in class_map.missing.tolist()]
        text = "the detector lacks %d of %d categories of %s, such as %s: never sampled, never detected, AP 0"
        log.warning(text, len(examples), len(names), path, listed(examples))


def _name(detector: Detector) -> str:
    return f"detector {detector.description['name']}"


_REMEDY = "--classes names.txt gives names, one per line in the order of the outputs; --class-order id or file an order"
