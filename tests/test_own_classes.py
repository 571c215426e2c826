"""Where frameworks keep the names of a detector's classes."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from extract.detectors import load_detector
from tests import frameworks
from tests.conftest import CLASSES

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # detectron2's anchors
NAMES = tuple(f"class {i}" for i in range(CLASSES))


def load_mmdet(folder, meta: dict, config: str = ""):
    """Loads a detector with this `meta` in its checkpoint and these lines at the end of its config."""
    spec = frameworks.SPECS["mmdet-mask_rcnn"](folder)
    content = torch.load(spec.weights, weights_only=True)
    torch.save({"meta": meta, "state_dict": content.get("state_dict", content)}, folder / "meta.pth")
    with spec.config_file.open("a") as file:
        file.write(config)
    return load_detector(replace(spec, weights=folder / "meta.pth"))


@pytest.mark.parametrize("key", ["classes", "CLASSES"])
def test_mmdetection_3_keeps_them_in_dataset_meta(tmp_path, key):
    detector = load_mmdet(tmp_path, {"dataset_meta": {key: NAMES, "palette": [(1, 2, 3)] * CLASSES}})
    assert detector.own_classes.names == NAMES and detector.own_classes.source.endswith("meta.pth (dataset_meta)")
    assert detector.dataset_meta == {"classes": NAMES, "palette": ((1, 2, 3),) * CLASSES}


def test_mmdetection_2_keeps_them_in_meta(tmp_path):
    detector = load_mmdet(tmp_path, {"CLASSES": NAMES, "epoch": 3})
    assert detector.own_classes.names == NAMES


def test_a_config_of_mmdetection_has_them_in_metainfo(tmp_path):
    inner = f"dict(type='CocoDataset', metainfo=dict(classes={NAMES!r}))"
    loader = f"\ntrain_dataloader = dict(dataset=dict(type='RepeatDataset', times=2, dataset={inner}))\n"
    detector = load_mmdet(tmp_path, {"dataset_meta": {"classes": ("too", "few")}}, loader)
    assert detector.own_classes.names == NAMES and detector.own_classes.source.endswith("(metainfo)")


def test_other_numbers_of_names_are_not_the_detectors(tmp_path):
    detector = load_mmdet(tmp_path, {"dataset_meta": {"classes": "one"}})
    assert detector.own_classes is None, "the 80 names of CocoDataset, the type in the config, are not either"


def detectron2_classes(datasets, k=3):
    frameworks.import_framework("detectron2")
    from extract.detectors.detectron2_classes import own_classes

    return own_classes(datasets, k)


def test_detectron2_has_them_in_its_catalog(tmp_path):
    frameworks.import_framework("detectron2")
    from detectron2.data import MetadataCatalog

    name = f"test_own_classes_{tmp_path.name}"
    MetadataCatalog.get(name).set(thing_classes=["cat", "ant", "bee"])
    found = detectron2_classes(["not_registered", "coco_2017_val", name])
    assert found == (("cat", "ant", "bee"), f"detectron2's dataset {name}", ())
    MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id = {5: 0, 1: 1, 2: 2}
    assert detectron2_classes([name]).category_ids == (5, 1, 2)
    assert detectron2_classes([name], 4) is None and detectron2_classes([]) is None
    coco = detectron2_classes(["coco_2017_train"], 80)
    assert coco.names[79] == "toothbrush" and coco.category_ids[79] == 90
    assert detectron2_classes(["lvis_v1_train"], 1203).names[0] == "aerosol_can"


def test_detectron2_reads_a_registered_file_only_when_it_loads_it(tmp_path):
    frameworks.import_framework("detectron2")
    from detectron2.data import MetadataCatalog
    from detectron2.data.datasets import register_coco_instances

    categories = [{"id": 5, "name": "cat"}, {"id": 1, "name": "ant"}, {"id": 2, "name": "bee"}]
    (tmp_path / "a.json").write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    name = f"test_registered_{tmp_path.name}"
    register_coco_instances(name, {}, str(tmp_path / "a.json"), str(tmp_path))
    found = detectron2_classes([name])
    assert found.names == ("ant", "bee", "cat") and found.category_ids == (1, 2, 5)
    assert MetadataCatalog.get(name).get("thing_classes") is None, "the catalog is unchanged"


def test_detectron2_datasets_of_a_config_and_of_a_lazy_config(tmp_path):
    module = frameworks.import_framework("detectron2")
    from omegaconf import OmegaConf

    from extract.detectors.detectron2_classes import lazy_datasets

    spec = module.tiny_spec("cascade", tmp_path, CLASSES)
    from detectron2.data import MetadataCatalog

    name = f"test_config_{tmp_path.name}"
    MetadataCatalog.get(name).set(thing_classes=list(NAMES))
    assert load_detector(spec).own_classes is None
    detector = load_detector(replace(spec, detector_options=("DATASETS.TEST", f"('{name}',)")))
    assert detector.own_classes.names == NAMES
    loaders = {"train": {"dataset": {"names": "a"}}, "test": {"dataset": {"names": ["b", "c"]}}}
    assert lazy_datasets(OmegaConf.create({"dataloader": loaders})) == ("a", "b", "c")
    assert lazy_datasets(OmegaConf.create({})) == ()


def test_torchvision_models_may_carry_them():
    from extract.detectors.torchvision_build import own_classes

    found = own_classes(SimpleNamespace(categories=["__background__", "cat", "ant"]), 2)
    assert found.names == ("cat", "ant") and found.category_ids == (1, 2)
    assert own_classes(SimpleNamespace(categories=["cat", "ant"]), 2).names == ("cat", "ant")
    assert own_classes(SimpleNamespace(categories=["cat", "ant"]), 7) is None
    coco = own_classes(SimpleNamespace(), 90)
    assert (coco.names[0], coco.names[11], coco.names[89]) == ("person", "N/A", "toothbrush")
    assert own_classes(SimpleNamespace(), 80) is None
