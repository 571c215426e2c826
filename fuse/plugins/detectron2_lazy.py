"""LazyConfigs of detectron2 as YAML, which `LazyConfig.load` reads like the .py file that they came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.modeling import GeneralizedRCNN
from detectron2.utils.registry import locate
from omegaconf import DictConfig, OmegaConf

from extract.config import DetectorSpec
from extract.detectors.detectron2_config import naming_errors, project_function, read_lazy


def plain_config(spec: DetectorSpec) -> dict[str, Any]:
    """Returns model and test-time resizing of a LazyConfig as plain values; classes and functions by their names.

    Raises ValueError naming the config file and the field of which YAML has no equivalent.
    """
    assert spec.config_file is not None
    project_function(spec.detector.partition(":")[2])
    with naming_errors(spec.config_file):
        cfg = read_lazy(spec)
        model: Any = OmegaConf.to_container(cfg.model, resolve=True)
        target = model.get("_target_")
        if (locate(target) if isinstance(target, str) else target) is not GeneralizedRCNN:
            raise ValueError(f"model is {target}, of which there is no calibrated class, expected GeneralizedRCNN")
        plain = {"model": _plain(model, "model")}
        mapper = OmegaConf.select(cfg, "dataloader.test.mapper")
        if mapper is not None:
            options: Any = OmegaConf.to_container(mapper, resolve=True)
            kept = {key: options[key] for key in ("augmentations", "image_format") if key in options}
            plain["dataloader"] = {"test": {"mapper": _plain(kept, "dataloader.test.mapper")}}
    return plain


def to_yaml(config: Mapping[str, Any]) -> bytes:
    """Returns plain values as a file."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(config))).encode()


def plain_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a part of a LazyConfig as plain containers."""
    plain: Any = OmegaConf.to_container(config) if isinstance(config, DictConfig) else config
    return dict(plain)


def _plain(value: object, name: str) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    path = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
    if name.endswith("._target_") and _located(path) is value:
        return path
    raise ValueError(f"{name} is {value!r}, which cannot be written to an exported config")


def _located(path: str) -> object:
    try:
        return locate(path)
    except Exception:  # names of functions within a config file are not importable
        return None
