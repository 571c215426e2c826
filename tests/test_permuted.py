"""A detector whose outputs are in another order than the class table, in every framework: caches, heads, exports."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import calib
import extract
import fuse
from calib.scoring import Original
from extract.accuracy import own_accuracy
from extract.config import DetectorSpec
from extract.data.annotations import read_annotations
from extract.data.class_map import ClassMap
from extract.detectors import load_detector
from extract.detectors.base import Image
from extract.detectors.class_map import map_detector
from extract.verify import worst_logit_error
from fuse.commands.export import CLASSES_FILE, export
from fuse.fusion import Fusion
from fuse.live import CalibratedDetector
from tests import frameworks
from tests.conftest import CLASSES
from tests.exactness import assert_hidden_features, assert_same_detections, make_images
from tests.test_exports import loaded_by_the_framework

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning"),  # detectron2's anchors
    pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning"),  # mmdetection's masks
]
CLASS_OF = (7, 2, 11, 0, 5, 1, 9, 3, 10, 8, 4, 6)
"""Class of each output of the permuted detector."""
NO_CLASS = (2, 6)
"""Outputs that are given no name, so that their classes have no output."""
OPTIONS = {"mode": "cat", "tail": 4, "max_detections": 40}


@dataclass(frozen=True)
class Setting:
    """A detector, the same with permuted outputs, and extraction configs of the permuted one."""

    name: str
    spec: DetectorSpec
    permuted: DetectorSpec
    config: extract.Config
    partial: extract.Config


@pytest.fixture(scope="module", params=frameworks.SPECS)
def setting(request, tiny, tmp_path_factory) -> Setting:
    folder = tmp_path_factory.mktemp("permuted")
    spec = frameworks.SPECS[request.param](folder)
    detector = load_detector(spec)
    rows = [(w[[*CLASS_OF, -1]], b[[*CLASS_OF, -1]]) for w, b in (s[-1] for s in detector.fc_layers("embedding"))]
    names = read_annotations(tiny.data / "train.json").classes["name"].tolist()
    in_order = tuple(names[c] for c in CLASS_OF)
    plugin = importlib.import_module(f"fuse.plugins.{detector.description['framework']}")
    content = plugin.checkpoint(detector.state_dict_with_classifiers(rows), detector, in_order)
    torch.save(content, folder / "permuted.pth")
    permuted = replace(spec, weights=folder / "permuted.pth")
    (folder / "names.txt").write_text("\n".join(in_order))
    partial = [("N/A" if i in NO_CLASS else name) for i, name in enumerate(in_order)]
    (folder / "partial.txt").write_text("\n".join(partial))
    # mmdetection's names are in the checkpoint.
    given = {"class_order": "name"} if request.param.startswith("mmdet") else {"classes": folder / "names.txt"}
    config = tiny.config("train", folder / "train.zarr", min_images_per_class=1, flip=0.0, **vars(permuted))
    return Setting(
        request.param,
        spec,
        permuted,
        replace(config, **given),
        replace(config, classes=folder / "partial.txt", out=str(folder / "partial.zarr")),
    )


@pytest.fixture(scope="module")
def cache(setting) -> extract.RoICache:
    return extract.run(setting.config)


@pytest.fixture(scope="module")
def partial(setting) -> extract.RoICache:
    return extract.run(setting.partial)


def test_a_cache_does_not_depend_on_the_order_of_outputs(setting, cache, tmp_path, capsys):
    same = ("classes", "class_order")
    config = replace(setting.config, out=str(tmp_path / "original.zarr"), weights=setting.spec.weights)
    original = extract.run(replace(config, **dict.fromkeys(same)))
    assert original.class_map is None and "class_outputs" not in original.detector
    assert cache.class_map == ClassMap(tuple(np.argsort(CLASS_OF).tolist()), CLASSES)
    for field in cache.fields:
        np.testing.assert_allclose(cache.read(field), original.read(field), rtol=1e-3, atol=1e-3, err_msg=field)
    assert worst_logit_error(cache) < 5e-3
    assert own_accuracy(cache) == own_accuracy(original)
    moved = sum(i != c for i, c in enumerate(CLASS_OF))
    assert f"outputs    {CLASSES} ({moved} moved)" in repr(cache)
    if setting.name.startswith("mmdet"):
        with pytest.raises(ValueError, match=r"permuted.pth \(dataset_meta\): class 0 is .*, but .* is listed there"):
            extract.run(replace(setting.config, class_order=None))


def test_hidden_features_do_not_depend_on_the_order_of_outputs(setting):
    class_map = ClassMap(tuple(np.argsort(CLASS_OF).tolist()), CLASSES)
    detector = map_detector(load_detector(setting.permuted), class_map)
    assert_hidden_features(detector, make_images((112, 112)))


def test_the_same_command_finds_the_same_cache(setting, cache):
    assert extract.run(setting.config).fingerprint == cache.fingerprint
    with pytest.raises(extract.CacheError, match="class_outputs"):
        extract.run(replace(setting.config, classes=None, class_order="id"))


def shown_names(name: str, out: Path) -> list[str]:
    """The names that torchvision and detectron2 show for the labels of an export, which has been loaded."""
    if name == "torchvision":
        model = importlib.import_module("fuse.plugins.torchvision").calibrated(frameworks.torchvision_model(), out)
        return model.categories[1:]
    from detectron2.config import get_cfg
    from detectron2.data import MetadataCatalog

    cfg = get_cfg()
    cfg.merge_from_file(str(out / "model.yaml"))
    return MetadataCatalog.get(cfg.DATASETS.TEST[0]).thing_classes


@pytest.mark.parametrize("fold", [False, True])
def test_an_export_detects_as_the_live_detector_in_the_detectors_own_order(setting, cache, fold, tmp_path):
    head, out = tmp_path / "head", tmp_path / "out"
    calib.train_head(cache, head_type="linear", steps=3, out=str(head))
    detector = load_detector(setting.permuted)
    options = OPTIONS | ({"mode": "calibrated", "max_detections": 300} if fold else {})
    config = fuse.ExportConfig(**vars(setting.permuted), head=head, out=out, fold=fold, **options)
    if fold and detector.description["activation"] == "sigmoid":
        with pytest.raises(ValueError, match="activation is sigmoid, a linear head's rows are for softmax"):
            export(config)
        return
    export(config)
    live = CalibratedDetector(detector, head, **options)
    if fold:
        stock = CalibratedDetector(load_detector(replace(setting.permuted, weights=out / "model.pth")), mode="original")
        results = lambda pixels: stock(pixels)[0]  # noqa: E731
    else:
        results = loaded_by_the_framework(setting.name, out, setting.permuted)
    for image in make_images((96, 144), (112, 112)):
        ((expected, _),) = live.predict(image.pixels)
        found, _ = detector.to_arrays(results(image.pixels))
        assert_same_detections(found._replace(labels=np.array(CLASS_OF)[found.labels]), expected)
    table = cache.classes
    rows = json.loads((out / CLASSES_FILE).read_text())
    first = int(setting.name == "torchvision")
    assert [row["label"] for row in rows] == [*range(first, CLASSES + first)]
    assert [row["category_id"] for row in rows] == table["category_id"].iloc[list(CLASS_OF)].tolist()
    names = table["name"].iloc[list(CLASS_OF)].tolist()
    assert [row["name"] for row in rows] == names
    if setting.name.startswith("mmdet"):
        assert torch.load(out / "model.pth", weights_only=True)["meta"]["dataset_meta"]["classes"] == tuple(names)
    elif not fold:
        assert shown_names(setting.name, out) == names


def test_a_program_takes_and_gives_the_detectors_own_order(setting, partial, tmp_path):
    head = tmp_path / "head"
    calib.train_head(partial, head_type="linear", steps=3, out=str(head))
    export(fuse.ExportConfig(**vars(setting.permuted), head=head, out=tmp_path / "out", **OPTIONS))
    detector = load_detector(setting.permuted)
    live = CalibratedDetector(detector, head, **OPTIONS)
    image = make_images((96, 144))
    (own,), (rois,) = (one.forward(image, live.level).rois for one in (detector, live.detector))
    program = torch.export.load(tmp_path / "out" / "scores.pt2").module()
    scores = program(own.features.float(), torch.from_numpy(own.logits)).numpy()
    known = [i for i in range(CLASSES) if i not in NO_CLASS]
    fusion = live.fusion
    expected = fuse.fuse_scores(fusion.original.scores(rois), fusion.calibrated.scores(rois), fusion.tail_mask, "cat")
    np.testing.assert_allclose(scores[:, known], expected[:, np.array(CLASS_OF)[known]], rtol=1e-3, atol=1e-5)
    assert not scores[:, NO_CLASS].any() and scores.shape == own.logits[:, 0].shape


def test_classes_without_output_are_never_sampled_and_never_detected(setting, partial):
    missing = np.array(CLASS_OF)[list(NO_CLASS)]
    assert partial.class_map.missing.tolist() == sorted(missing) and partial.class_map.surplus.tolist() == [*NO_CLASS]
    labels = partial.read("labels")
    assert not np.isin(labels, missing).any() and (labels[partial.read("is_gt")] == -1).any()
    assert np.isin(missing, calib.BiLevelSampler(partial).missing_classes).all()
    annotations = read_annotations(setting.partial.annotations)
    visited = np.isin(annotations.image_ids, partial.images["image_id"])
    shown = [annotations.labels[annotations.image_slice(i)] for i in np.flatnonzero(visited)]
    assert all(not np.isin(labels, missing).all() for labels in shown), "no image is visited for these classes alone"
    assert worst_logit_error(partial) < 5e-3
    rois = partial[0]
    assert not Original.from_description(partial.detector).scores(rois)[:, missing].any()
    heads = [calib.train_head(partial, head_type=kind, hidden=8, steps=3) for kind in ("linear", "2fc_rand", "3fc_ft")]
    methods = [calib.posthoc.build_method(name).fit(partial) for name in calib.posthoc.METHODS]
    for scorer in (*heads, *methods):
        scores = scorer.scores(rois)
        assert np.isfinite(scores).all() and scores[:, :-1].any() and not scores[:, missing].any(), scorer.name


def test_scores_of_a_part_of_the_outputs_are_those_of_the_detector(setting, partial):
    detector = load_detector(setting.permuted)
    mapped = map_detector(detector, partial.class_map)
    image = make_images((96, 144))
    (own,), (rois,) = (one.forward(image, "logits").rois for one in (detector, mapped))
    scorer = Original.from_description(detector.description)
    known = [c for i, c in enumerate(CLASS_OF) if i not in NO_CLASS]
    outputs = [i for i in range(CLASSES) if i not in NO_CLASS]
    np.testing.assert_allclose(scorer.scores(rois)[:, known], scorer.scores(own)[:, outputs], rtol=1e-4, atol=1e-6)


def test_methods_fold_into_a_part_of_the_outputs(setting, partial, tmp_path):
    detector = load_detector(setting.permuted)
    norcal = calib.posthoc.NorCal().fit(partial)
    fuse.export_folded(detector, norcal, tmp_path / "stock.pth")
    stock = map_detector(load_detector(replace(setting.permuted, weights=tmp_path / "stock.pth")), partial.class_map)
    (image,) = make_images((96, 144))
    (own,), (new,) = (one.forward([image], "logits").rois for one in (map_detector(detector, partial.class_map), stock))
    scorer = Original.from_description(stock.description)
    np.testing.assert_allclose(scorer.scores(new), norcal.scores(own), rtol=1e-3, atol=1e-5)
    names = [row["name"] for row in json.loads((tmp_path / CLASSES_FILE).read_text())]
    assert [i for i, name in enumerate(names) if name == "N/A"] in ([], [*NO_CLASS])
    if detector.description["activation"] == "softmax":
        with pytest.raises(
            ValueError, match=r"tau-norm-1 changes the background logit, of which 2 outputs of detector"
        ):
            fuse.export_folded(detector, calib.posthoc.TauNorm().fit(partial), tmp_path / "tau.pth")


def test_a_head_for_another_order_is_refused(setting, cache, partial):
    head = calib.train_head(cache, head_type="linear", steps=1)
    with pytest.raises(ValueError, match="order of the detector's classes"):
        head.check_cache(partial)
    mapped = map_detector(load_detector(setting.permuted), partial.class_map)
    with pytest.raises(ValueError, match="its classes are in another order already"):
        CalibratedDetector(mapped, head)
    assert map_detector(mapped, partial.class_map) is mapped
    with pytest.raises(ValueError, match="number of classes 12, expected 3"):
        map_detector(load_detector(setting.permuted), ClassMap((0, 1), 3))


def test_class_specific_boxes_and_masks_are_those_of_the_output(tmp_path):
    """A detector with one box and one mask per class, as in the frameworks' stock configs."""
    from extract.detectors.torchvision import TorchvisionDetector
    from tests.frameworks.torchvision import mask_rcnn

    detector = TorchvisionDetector(mask_rcnn())
    class_map = ClassMap((4, 0, -1, 6, 2), detector.num_classes)
    mapped = map_detector(detector, class_map)
    images = make_images((96, 144))
    original, output = (one.forward(images, "logits") for one in (detector, mapped))
    (own,), (rois,) = original.rois, output.rois
    np.testing.assert_array_equal(rois.boxes[:, [0, 1, 3, 4]], own.boxes[:, [4, 0, 6, 2]])
    found = Fusion.resolve(fuse.FusionConfig(mode="original"), mapped.description, ()).detections(rois)
    assert len(found.labels) and set(found.labels) <= {0, 1, 3, 4}
    with_outputs = found._replace(labels=np.array(class_map.outputs)[found.labels])
    ((theirs, their_masks), (ours, masks)) = (
        one.to_arrays(result.to_framework([detections])[0])
        for one, result, detections in ((detector, original, with_outputs), (mapped, output, found))
    )
    np.testing.assert_array_equal(ours.labels, found.labels)
    np.testing.assert_array_equal(theirs.labels, with_outputs.labels)
    np.testing.assert_array_equal(masks, their_masks)


def test_a_mapped_detector_is_a_detector(setting, partial):
    mapped = map_detector(load_detector(setting.permuted), partial.class_map)
    smaller = mapped.resized(64, 96)
    assert smaller.size == (64, 96) and smaller.class_map == mapped.class_map and mapped.device.type == "cpu"
    (rois,) = smaller.forward([Image(3, make_images((96, 144))[0].pixels)], "logits").rois
    assert rois.logits.shape[2] == CLASSES + 1 and rois.image_id == 3
