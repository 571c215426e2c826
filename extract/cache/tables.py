"""The small arrays of a cache: class table, image table, progress and the detector's fully connected layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from extract.cache.format import IMAGE_COLUMNS, IMAGES_PER_BLOCK, CacheError, Layers, naming_damage
from extract.cache.manifest import differs_from_manifest
from extract.data.class_map import ClassMap
from extract.data.classes import check_classes
from extract.rois import RoIs
from extract.utils.errors import one_line

if TYPE_CHECKING:
    import pandas as pd

CLASS_NUMBERS = ("category_id", "image_count", "instance_count")
IMAGE_DTYPES = {"image_id": np.int64, "height": np.int32, "width": np.int32, "flipped": bool}


def write_array(group: zarr.Group, name: str, values: np.ndarray, axes: tuple[str, ...]) -> None:
    """Stores an array as one checksummed chunk."""
    group.create_array(
        name,
        data=values,
        chunks=tuple(max(n, 1) for n in values.shape),
        compressors=[ZstdCodec(level=1), Crc32cCodec()],
        dimension_names=axes,
        overwrite=True,
        config={"write_empty_chunks": True},  # so that a missing chunk is always damage
    )


def read_array(group: zarr.Group, name: str, url: str) -> np.ndarray:
    """Reads a whole array. Raises CacheError naming it if it is missing, damaged or not that of the manifest."""
    try:
        array = group[name]
        values = array[:]
        differs = differs_from_manifest(group, name, values)
        if differs is not False and array.nchunks_initialized < array.nchunks:
            raise CacheError(f"{url}/{name}: its chunk is missing")
        if differs:
            raise CacheError(f"{url}/{name}: damaged, or of another array: its content is not the manifest's")
        return values
    except KeyError:
        raise CacheError(f"{url}: has no {name}") from None
    except CacheError:
        raise
    except (ValueError, OSError, RuntimeError, TypeError, AttributeError, ArithmeticError) as error:
        raise CacheError(f"{url}/{name}: damaged: {one_line(error)}") from None


def write_classes(group: zarr.Group, classes: pd.DataFrame) -> None:
    """Stores the class table. Text goes into attributes, because Zarr v3 has no specified string type yet."""
    for name in CLASS_NUMBERS:
        write_array(group, f"classes/{name}", classes[name].to_numpy(np.int64), ("class",))
    group["classes"].attrs.update({"name": classes["name"].tolist(), "frequency": "".join(classes["frequency"])})


def read_classes(group: zarr.Group, url: str) -> pd.DataFrame:
    """Reads the class table, see `extract.data.classes`."""
    import pandas as pd

    columns = {name: read_array(group, f"classes/{name}", url) for name in CLASS_NUMBERS}
    text = group["classes"].attrs.asdict()
    missing = {"name", "frequency"} - text.keys()
    if missing:
        raise CacheError(f"{url}/classes/zarr.json: has no {' and '.join(sorted(missing))}")
    return check_classes(pd.DataFrame(columns | {"name": text["name"], "frequency": list(text["frequency"])}), url)


def read_class_map(detector: Mapping[str, Any], num_classes: int, url: str) -> ClassMap | None:
    """Returns the class map in a detector's description. Raises CacheError if it is not one of so many classes."""
    try:
        class_map = ClassMap.from_description(detector)
    except (KeyError, TypeError, ValueError) as error:
        raise CacheError(f"{url}: detector: {error}") from None
    if class_map and class_map.num_classes != num_classes:
        raise CacheError(f"{url}: detector: {class_map.num_classes} class_outputs, {num_classes} classes")
    return class_map


def image_table(rois: Sequence[RoIs]) -> pd.DataFrame:
    """Returns the image table of images in order, with the number of RoIs of each."""
    import pandas as pd

    rows = [(image.image_id, image.height, image.width, image.flipped, len(image)) for image in rois]
    return pd.DataFrame(rows, columns=list(IMAGE_COLUMNS))


def write_images(group: zarr.Group, images: pd.DataFrame) -> None:
    """Stores the image table, and an array for the progress of writing that marks every image as not written (-1)."""
    for name, dtype in IMAGE_DTYPES.items():
        write_array(group, f"images/{name}", images[name].to_numpy(dtype), ("image",))
    group.create_array(
        "progress",
        shape=(len(images), 2),
        dtype=np.int64,
        chunks=(IMAGES_PER_BLOCK, 2),
        fill_value=-1,
        dimension_names=("image", "count_and_digest"),
    )


def write_fc_layers(group: zarr.Group, stages: Sequence[Layers]) -> None:
    """Stores each stage's fully connected layers. Raises CacheError for shapes that are not those of layers."""
    for stage, layers in enumerate(stages):
        for depth, (weight, bias) in enumerate(layers):
            name = f"detector/stage_{stage}"
            if weight.ndim != 2 or bias.shape != weight.shape[:1]:
                found = f"layer {depth} has weight {weight.shape} and bias {bias.shape}"
                raise CacheError(f"{group.store_path}: {name}: {found}, expected (out, in) and (out,)")
            # Each layer's output is the next one's input: xarray wants one size of one name in a group.
            output, inputs = f"width_{depth + 1}", f"width_{depth}"
            write_array(group, f"{name}/weight_{depth}", weight.astype(np.float32), (output, inputs))
            write_array(group, f"{name}/bias_{depth}", bias.astype(np.float32), (output,))


def read_fc_layers(group: zarr.Group, stage: int, url: str, first: int = 0) -> Layers:
    """Reads one stage's fully connected layers from the `first` on; [] if the cache has none."""
    name = f"detector/stage_{stage}"
    with naming_damage(url):
        if name not in group:
            return []
        depth = sum(key.startswith("weight_") for key in group[name].array_keys())
        return [
            (read_array(group, f"{name}/weight_{d}", url), read_array(group, f"{name}/bias_{d}", url))
            for d in range(first, depth)
        ]
