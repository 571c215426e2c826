"""Whether two descriptions are of one detector: by tensors, else by name and file; settings are compared as well."""

from __future__ import annotations

import pytest

from extract.detectors.identity import check_same_detector, describe_settings, with_settings

SETTINGS = describe_settings((800, 1333), [123.675, 116.28, 103.53], [58.395, 57.12, 57.375], "RGB")


def describe(**changes):
    """The description of a detector, and what differs in it."""
    return {"name": "a", "weights_sha256": "f1", "tensors_sha256": "t1", "settings": SETTINGS, **changes}


def compare(**changes):
    check_same_detector("val.zarr", describe(**changes), "the head was trained for", describe())


def test_equal_tensors_are_one_detector(caplog):
    compare()
    compare(name="b", weights_sha256="f2")
    compare(settings=None)
    assert not caplog.text
    with pytest.raises(ValueError, match=r"^val.zarr: detector tensors t2, the head was trained for t1$"):
        compare(tensors_sha256="t2")


def test_descriptions_without_tensors_are_compared_by_name_and_file():
    compare(tensors_sha256="")
    with pytest.raises(ValueError, match="val.zarr: detector weights f2, the head was trained for f1"):
        compare(tensors_sha256="", weights_sha256="f2")
    with pytest.raises(ValueError, match="val.zarr: detector name b, the head was trained for a"):
        compare(tensors_sha256="", name="b")
    with pytest.raises(ValueError, match="val.zarr: detector weights unknown, the head was trained for f1"):
        check_same_detector("val.zarr", {"name": "a"}, "the head was trained for", describe())


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("pixel_mean", [0.0, 0.0, 0.0], r"pixel mean \[0.0, 0.0, 0.0\], the head .* \[123.675, 116.28, 103.53\]"),
        ("pixel_std", [1.0, 1.0, 1.0], r"pixel std \[1.0, 1.0, 1.0\], the head .* \[58.395, 57.12, 57.375\]"),
        ("channel_order", "BGR", "channel order BGR, the head was trained for RGB"),
    ],
)
def test_another_normalisation_is_refused(key, value, message):
    with pytest.raises(ValueError, match=f"val.zarr: detector {message}"):
        compare(settings={**SETTINGS, key: value})


def test_another_size_and_other_options_are_warned_of(caplog):
    own = with_settings(describe(), options=["min_size=512"], input_size=[256, 512])
    other = with_settings(describe(), options=[])
    check_same_detector("val.zarr", own, "in train.zarr", other)
    assert caplog.messages == [
        "val.zarr: input size (shorter, longer edge) of the detector [256, 512], in train.zarr [800, 1333]",
        "val.zarr: options of the detector ['min_size=512'], in train.zarr []",
    ]
    caplog.clear()
    compare(config_sha256="c1")
    assert not caplog.text
    check_same_detector("val.zarr", describe(config_sha256="c1"), "in train.zarr", describe(config_sha256="c2"))
    assert caplog.messages == ["val.zarr: config of the detector (sha256) c1, in train.zarr c2"]
