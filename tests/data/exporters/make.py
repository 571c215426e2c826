"""Writes the files of this folder with the exporters themselves; see README.md.

Run it in an environment that has them: python make.py. A tool that is not installed is left out.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
CLASSES = ("ant", "bee", "cat")
SIZE = (64, 96)  # height, width
OBJECTS = {
    "a.png": [(0, (8, 6, 48, 36)), (2, (50, 20, 90, 60))],
    "b.png": [(1, (10.5, 4, 30, 24))],
    "c.png": [],
}
"""Class and box (xyxy) of every object by image; tests/test_exporters.py expects them."""


def corners(box: tuple[float, ...]) -> list[tuple[float, float]]:
    x1, y1, x2, y2 = box
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def write_images(folder: Path) -> None:
    from PIL import Image

    folder.mkdir()
    for name in OBJECTS:
        Image.new("RGB", SIZE[::-1], "gray").save(folder / name)


def supervision(folder: Path) -> Path:
    import numpy as np
    import supervision as sv

    annotations = {}
    for name, objects in OBJECTS.items():
        boxes = np.array([box for _, box in objects], np.float32).reshape(-1, 4)
        annotations[f"images/{name}"] = sv.Detections(boxes, class_id=np.array([label for label, _ in objects], int))
    dataset = sv.DetectionDataset(list(CLASSES), list(annotations), annotations)
    dataset.as_coco(annotations_path="out.json")
    return folder / "out.json"


def pylabel(folder: Path) -> Path:
    from pylabel import importer

    labels = folder / "labels"
    labels.mkdir()
    height, width = SIZE
    for name, objects in OBJECTS.items():
        lines = [
            f"{k} {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} {(x2 - x1) / width} {(y2 - y1) / height}"
            for k, (x1, y1, x2, y2) in objects
        ]
        (labels / name).with_suffix(".txt").write_text("\n".join(lines))
    dataset = importer.ImportYoloV5("labels", path_to_images="../images", cat_names=list(CLASSES), img_ext="png")
    dataset.export.ExportToCoco("out.json")
    return folder / "out.json"


def globox(folder: Path) -> Path:
    from globox import Annotation, AnnotationSet, BoundingBox

    annotations = AnnotationSet()
    for name, objects in OBJECTS.items():
        boxes = [BoundingBox(label=CLASSES[k], xmin=b[0], ymin=b[1], xmax=b[2], ymax=b[3]) for k, b in objects]
        annotations.add(Annotation(name, SIZE[::-1], boxes))
    annotations.save_coco("out.json", auto_ids=True)
    return folder / "out.json"


def datumaro(folder: Path) -> Path:
    import datumaro as dm

    items = []
    for name, objects in OBJECTS.items():
        shapes = [dm.Bbox(b[0], b[1], b[2] - b[0], b[3] - b[1], label=k) for k, b in objects]
        media = dm.Image.from_file(path=f"images/{name}")
        items.append(dm.DatasetItem(id=Path(name).stem, subset="val", media=media, annotations=shapes))
    dm.Dataset.from_iterable(items, categories=list(CLASSES)).export("out", "coco_instances", save_media=False)
    return folder / "out" / "annotations" / "instances_val.json"


def sahi(folder: Path) -> Path:
    from sahi.utils.coco import Coco, CocoAnnotation, CocoCategory, CocoImage

    coco = Coco()
    for k, name in enumerate(CLASSES):
        coco.add_category(CocoCategory(id=k, name=name))
    for name, objects in OBJECTS.items():
        image = CocoImage(file_name=f"images/{name}", height=SIZE[0], width=SIZE[1])
        for k, b in objects:
            box = [b[0], b[1], b[2] - b[0], b[3] - b[1]]
            image.add_annotation(CocoAnnotation(bbox=box, category_id=k, category_name=CLASSES[k]))
        coco.add_image(image)
    (folder / "out.json").write_text(json.dumps(coco.json))
    return folder / "out.json"


def labelme2coco(folder: Path) -> Path:
    import labelme2coco

    for name, objects in OBJECTS.items():
        shapes = [
            {"label": CLASSES[k], "points": corners(box), "shape_type": "polygon", "group_id": None, "flags": {}}
            for k, box in objects
        ]
        content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None}
        content |= {"imageHeight": SIZE[0], "imageWidth": SIZE[1]}
        (folder / "images" / name).with_suffix(".json").write_text(json.dumps(content))
    labelme2coco.convert("images", "out")
    return folder / "out" / "dataset.json"


def label_studio_sdk(folder: Path) -> Path:
    from label_studio_sdk.converter import Converter

    config = "<View><Image name='image' value='$image'/><RectangleLabels name='label' toName='image'>"
    config += "".join(f"<Label value='{name}'/>" for name in CLASSES) + "</RectangleLabels></View>"
    tasks = []
    for i, (name, objects) in enumerate(OBJECTS.items(), 1):
        results = [_label_studio_result(f"{i}{n}", CLASSES[k], box) for n, (k, box) in enumerate(objects)]
        annotation = {"id": i, "completed_by": 1, "result": results, "was_cancelled": False}
        tasks.append({"id": i, "data": {"image": f"/data/upload/1/{name}"}, "annotations": [annotation]})
    (folder / "tasks.json").write_text(json.dumps(tasks))
    converter = Converter(config, str(folder), download_resources=False)
    converter.convert_to_coco("tasks.json", "out", output_image_dir="out/images", is_dir=False)
    return folder / "out" / "result.json"


def _label_studio_result(name: str, label: str, box: tuple[float, ...]) -> dict:
    height, width = SIZE
    value = {"x": 100 * box[0] / width, "y": 100 * box[1] / height, "rotation": 0, "rectanglelabels": [label]}
    value |= {"width": 100 * (box[2] - box[0]) / width, "height": 100 * (box[3] - box[1]) / height}
    result = {"id": name, "from_name": "label", "to_name": "image", "type": "rectanglelabels", "value": value}
    return result | {"original_width": width, "original_height": height, "image_rotation": 0}


def imantics(folder: Path) -> Path:
    import imantics

    dataset = imantics.Dataset("toy")
    categories = [imantics.Category(name, id=k + 1) for k, name in enumerate(CLASSES)]
    for i, (name, objects) in enumerate(OBJECTS.items(), 1):
        image = imantics.Image.from_path(f"images/{name}")
        image.id = i
        for k, box in objects:
            image.add(imantics.BBox(box), categories[k])
        dataset.add(image)
    (folder / "out.json").write_text(json.dumps(dataset.coco()))
    return folder / "out.json"


def fiftyone(folder: Path) -> Path:
    # The exporter alone: datasets of fiftyone need its database.
    from fiftyone.core.labels import Detection, Detections
    from fiftyone.core.metadata import ImageMetadata
    from fiftyone.utils.coco import COCODetectionDatasetExporter

    height, width = SIZE
    exporter = COCODetectionDatasetExporter(labels_path="out.json", classes=list(CLASSES), export_media=False)
    with exporter:
        for name, objects in OBJECTS.items():
            labels = [
                Detection(
                    label=CLASSES[k],
                    bounding_box=[b[0] / width, b[1] / height, (b[2] - b[0]) / width, (b[3] - b[1]) / height],
                )
                for k, b in objects
            ]
            path = f"images/{name}"
            exporter.export_sample(path, Detections(detections=labels), metadata=ImageMetadata.build_for(path))
    return folder / "out.json"


def kwcoco(folder: Path) -> Path:
    from kwcoco import CocoDataset

    dataset = CocoDataset()
    categories = [dataset.add_category(name) for name in CLASSES]
    for name, objects in OBJECTS.items():
        image = dataset.add_image(f"images/{name}", height=SIZE[0], width=SIZE[1])
        for k, b in objects:
            dataset.add_annotation(image, categories[k], bbox=[b[0], b[1], b[2] - b[0], b[3] - b[1]])
    dataset.dump("out.json")
    return folder / "out.json"


def labelformat(folder: Path) -> Path:
    from labelformat.formats import COCOObjectDetectionOutput, YOLOv8ObjectDetectionInput

    height, width = SIZE
    (folder / "labels").mkdir()
    for name, objects in OBJECTS.items():
        lines = [
            f"{k} {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} {(x2 - x1) / width} {(y2 - y1) / height}"
            for k, (x1, y1, x2, y2) in objects
        ]
        (folder / "labels" / name).with_suffix(".txt").write_text("\n".join(lines))
    (folder / "data.yaml").write_text(f"path: .\ntrain: images\nnc: 3\nnames: {list(CLASSES)}\n")
    COCOObjectDetectionOutput(folder / "out.json").save(YOLOv8ObjectDetectionInput(folder / "data.yaml", "train"))
    return folder / "out.json"


EXPORTERS: dict[str, Callable[[Path], Path]] = {
    "supervision": supervision,
    "pylabel": pylabel,
    "globox": globox,
    "datumaro": datumaro,
    "sahi": sahi,
    "labelme2coco": labelme2coco,
    "label-studio-sdk": label_studio_sdk,
    "imantics": imantics,
    "fiftyone": fiftyone,
    "kwcoco": kwcoco,
    "labelformat": labelformat,
}


def main() -> None:
    index = json.loads((HERE / "index.json").read_text()) if (HERE / "index.json").exists() else {}
    for name, export in EXPORTERS.items():
        folder = Path(tempfile.mkdtemp())
        write_images(folder / "images")
        os.chdir(folder)
        try:
            shutil.copy(export(folder), HERE / f"{name}.json")
            index[name] = version(name)
        except ImportError as error:
            print(f"{name}: left out: {error}")
    (HERE / "index.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main()
