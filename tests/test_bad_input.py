"""Input of strangers: damaged, impossible and hostile files end in one line that names the file and the field."""

from __future__ import annotations

import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

import calib
from calib.head_io import load_info
from calib.heads import Head, HeadInfo
from extract import CacheError, write_cache
from extract.data.annotations import read_annotations
from extract.data.decoding import decode_image
from extract.data.image_files import find_image
from extract.data.images import read_image
from extract.detectors.base import Image
from extract.detectors.checkpoint_files import read_checkpoint
from extract.detectors.common import check_resizable
from extract.detectors.weights import tensors_sha256
from extract.utils.files import file_sha256, replacing
from fuse.commands.config import Config
from fuse.commands.manifest import new_manifest
from fuse.commands.predictions import PredictionLines
from fuse.detections import Detections
from fuse.evaluation.dataset import load_annotations
from fuse.export.checksums import check_sums, check_when_loaded, write_sums
from fuse.gallery import image_reader
from tests.toy_cache import toy_cache

DEEP = "[" * 100_000 + "]" * 100_000


def annotation_file(group: str = "images", **changes: object) -> str:
    content = {
        "images": [{"id": 1, "height": 20, "width": 20, "neg_category_ids": [], "not_exhaustive_category_ids": []}],
        "categories": [{"id": 1, "name": "a", "frequency": "r"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 8, 8], "area": 64}
            | {"segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]}
        ],
    }
    content[group][0] |= changes
    return json.dumps(content)


def small_head() -> Head:
    head = Head(HeadInfo("2fc_rand", "embedding", (8,), (8, 16, 4), 0, (1, 2, 3), tuple("abc"), (1, 1, 1), (0.5,)))
    for parameter in head.parameters():
        torch.nn.init.ones_(parameter)
    return head


@pytest.mark.parametrize(
    ("text", "readers"),
    [
        (annotation_file(id=2**63), (read_annotations, load_annotations)),
        (annotation_file(width=2**63), (read_annotations, load_annotations)),
        (annotation_file("annotations", category_id=10**30), (read_annotations, load_annotations)),
        (annotation_file("annotations", area=10**400), (load_annotations,)),
        (annotation_file("annotations", bbox=[10**400, 0, 1, 1]), (read_annotations, load_annotations)),
        (annotation_file("annotations", segmentation={"size": 5, "counts": "0"}), (load_annotations,)),
        (annotation_file("annotations", segmentation=[[10**400, 1, 2, 3, 4, 5]]), (load_annotations,)),
        (annotation_file("annotations", image_id="x" * 100_000), (read_annotations, load_annotations)),
        (annotation_file("categories", name="a", id="x" * 100_000), (read_annotations, load_annotations)),
        (annotation_file("categories", frequency="x" * 100_000), (read_annotations,)),
        (annotation_file("categories", name="\ud800"), (read_annotations, load_annotations)),
        (annotation_file("categories", extra=7).replace("7", DEEP, 1), (read_annotations, load_annotations)),
        (
            json.dumps([{"image_id": 1, "category_id": 2**63, "score": 1, "bbox": [0, 0, 1, 1]}]),
            (Detections.from_json,),
        ),
        (DEEP, (Detections.from_json, read_annotations, load_annotations)),
        (b"\xff\xfe{}", (Detections.from_json, read_annotations, load_annotations)),
        ('{"a": ' + DEEP + "}", (load_info,)),
    ],
)
def test_exotic_json_is_refused_in_one_line(tmp_path, text, readers):
    file = tmp_path / "config.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    for reader in readers:
        with pytest.raises(ValueError, match="config.json") as error:
            reader(tmp_path if reader is load_info else file)
        assert len(str(error.value)) < 500 + len(str(file))


@pytest.mark.long
@pytest.mark.parametrize("widths", [[8, -4, 4], [8, 0, 4], [8, 2**30, 4], [8, 2**40, 4], [8, 10**30, 4]])
def test_impossible_widths_of_a_head_need_no_memory(tmp_path, widths):
    calib.save_head(small_head(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"widths": widths}
    del config["config_sha256"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"(config\.json|head\.safetensors): .*widths"):
        calib.load_head(tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("file", ["head.safetensors", "config.json"])
def test_every_changed_byte_of_a_head_is_found(tmp_path, file):
    """A byte that is no data, such as a space of the JSON, may change; then the head is the same."""
    calib.save_head(small_head(), tmp_path)
    expected, content = calib.load_head(tmp_path), (tmp_path / file).read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.choice(len(content), min(len(content), 150), replace=False).tolist():
        damaged = bytearray(content)
        damaged[position] ^= 1 << int(rng.integers(8))
        (tmp_path / file).write_bytes(damaged)
        try:
            found = calib.load_head(tmp_path)
        except ValueError as error:
            assert str(tmp_path) in str(error)
            continue
        assert found.info == expected.info
        assert all(map(torch.equal, found.state_dict().values(), expected.state_dict().values()))


def test_heads_without_checksums_load(tmp_path):
    calib.save_head(small_head(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["config_sha256"], config["head_sha256"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert calib.load_head(tmp_path).info == small_head().info


def test_weights_of_another_head_are_refused(tmp_path):
    other = small_head()
    torch.nn.init.zeros_(next(other.parameters()))
    for folder, head in (("a", small_head()), ("b", other)):
        calib.save_head(head, tmp_path / folder)
    (tmp_path / "b" / "head.safetensors").rename(tmp_path / "a" / "head.safetensors")
    with pytest.raises(ValueError, match=r"a/head\.safetensors: damaged, or of another head"):
        calib.load_head(tmp_path / "a")


def test_damaged_archives_and_text_are_refused_in_one_line(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save({"a": torch.ones(2)}, file)
    file.write_bytes(file.read_bytes().replace(b"PK\x01\x02", b"PK\x01\x03"))
    with pytest.raises(ValueError, match=r"weights\.pth: damaged"):
        read_checkpoint(file)
    config = Config(cache="c", out=tmp_path, annotations=tmp_path / "val.json", mode="original")
    (tmp_path / "run.json").write_bytes(b'{"mode": "\xff"}')
    with pytest.raises(ValueError, match=r"run\.json: damaged"):
        new_manifest(config)
    (tmp_path / "predictions.partial.jsonl").write_bytes(b'{"mode": "\xff"}\n')
    with pytest.raises(ValueError, match=r"predictions\.partial\.jsonl: damaged"):
        PredictionLines(tmp_path, {})


def test_layers_of_other_shapes_are_named(tmp_path):
    cache = toy_cache(tmp_path / "c.zarr", images=2)
    layers = [[(weight.ravel(), bias) for weight, bias in cache.fc_layers()]]
    options = {"split": "train", "level": "pooled", "stages": cache.stages, "fc_layers": layers}
    with pytest.raises(CacheError, match=r"detector/stage_0: layer 0 has weight \(\d+,\) .* expected \(out, in\)"):
        write_cache(tmp_path / "d.zarr", cache[:], cache.classes.reset_index(), **options)


def test_changed_and_missing_files_of_an_export_are_named(tmp_path):
    check_sums(tmp_path)  # an earlier version's
    (tmp_path / "model.pth").write_bytes(b"weights")
    write_sums(tmp_path, {"model.pth": file_sha256(tmp_path / "model.pth")})
    check_sums(tmp_path)
    (tmp_path / "model.pth").write_bytes(b"weighty")
    with pytest.raises(ValueError, match=r"model\.pth: damaged, or changed since the export"):
        check_sums(tmp_path)
    (tmp_path / "model.pth").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.pth: no such file, which .*SHA256SUMS lists"):
        check_sums(tmp_path)
    (tmp_path / "SHA256SUMS").write_text("0  ../model.pth\n")
    with pytest.raises(ValueError, match="SHA256SUMS: damaged"):
        check_sums(tmp_path)


def test_a_model_refuses_other_tensors_than_were_exported():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    check_when_loaded(model, tensors_sha256(state))
    model.load_state_dict(state)
    torch.nn.ModuleList([model]).load_state_dict({f"0.{name}": tensor for name, tensor in state.items()})
    with pytest.raises(ValueError, match="the checkpoint is damaged, or of another export"):
        model.load_state_dict(state | {"0.bias": state["0.bias"] + 1e-7})


def test_a_header_of_too_many_pixels_is_refused(tmp_path):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IEND", b""))
    with pytest.raises(ValueError, match=r"x\.png: not a readable image"):
        decode_image(tmp_path / "x.png")


def test_images_too_narrow_to_resize_are_refused():
    with pytest.raises(ValueError, match="image 7: is 500×1, too narrow to resize to 112"):
        check_resizable(Image(7, np.zeros((1, 500, 3), np.uint8)), (112, 112))
    check_resizable(Image(7, np.zeros((5, 500, 3), np.uint8)), (112, 112))
    check_resizable(Image(7, np.zeros((1, 1, 3), np.uint8)), (800, 1333))


def test_file_names_that_leave_the_folder_are_refused(tmp_path):
    inside, outside = tmp_path / "images", tmp_path / "other"
    inside.mkdir(), outside.mkdir()
    for folder in (inside, outside):
        PILImage.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / f"{folder.name}.png")
    (inside / "link.png").symlink_to(outside / "other.png")
    for name in ("../other/other.png", str(outside / "other.png"), "../images/../other/other.png"):
        with pytest.raises(ValueError, match=r"images: the file name .*other\.png' leads out .* --allow-outside"):
            read_image(inside, (name,), (4, 4))
        assert find_image(inside, (name,), allow_outside=True).samefile(outside / "other.png")
    image = {"id": 7, "height": 4, "width": 4, "file_name": "../other/other.png"}
    content = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    dataset = load_annotations(content)
    with pytest.raises(ValueError, match="--allow-outside"):
        image_reader(dataset, inside, [7])
    read = image_reader(dataset, inside, [7], allow_outside=True)
    assert read is not None and read(7).shape == (4, 4, 3)
    for name in ("images.png", "../images/images.png", str(inside / "images.png"), "link.png"):
        assert read_image(inside, (name,), (4, 4)).shape == (4, 4, 3)


def test_two_writers_of_one_file_never_share_a_half_file(tmp_path):
    path = tmp_path / "head.safetensors"
    with replacing(path) as one:
        one.write_bytes(b"A" * 10)
        with replacing(path) as two:
            two.write_bytes(b"B" * 10)
        assert path.read_bytes() == b"B" * 10
    assert path.read_bytes() == b"A" * 10
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
