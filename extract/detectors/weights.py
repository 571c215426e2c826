"""Loads a detector's weights with the model's own `load_state_dict`, and identifies the detector by its tensors."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from extract.detectors.checkpoint_files import read_checkpoint
from extract.detectors.state_dicts import FoundState, find_state_dict
from extract.utils.errors import listed, one_line
from extract.utils.files import file_sha256

logger = logging.getLogger(__name__)

ConvertNames = Callable[[nn.Module, Mapping[Any, Any]], Mapping[Any, Any]]
"""(model, checkpoint) → the checkpoint with the names of the model's own framework."""
ROI_HEADS = ("roi_heads", "roi_head")
"""Parts whose children are heads: a model may lack the mask or keypoint head that a checkpoint has."""
TRAINING = re.compile(r"(^|[._])(loss|criterion)|num_batches_tracked$")
"""Names of tensors that only training uses."""
BESIDE = re.compile(r"(^|[._])(aux|ema)")
"""Names of tensors that a checkpoint holds beside the model's: auxiliary heads, averaged twins."""
CLASSIFIER = re.compile(r"backbone\.(.*\.)?(fc|linear|classifier)\.(weight|bias)$")
"""The classifier of a backbone that was trained on images."""
SIZE_MISMATCH = re.compile(r"size mismatch for (\S+): .*?torch.Size\(\[(.*?)\]\).*?torch.Size\(\[(.*?)\]\)\.?")
KNOWN_KEYS = {
    "detectron2": r"(proposal_generator|backbone\.bottom_up)\.",
    "mmdetection": r"(rpn_head|roi_head|bbox_head)\.",
    "torchvision's detectors": r"(rpn\.head|backbone\.body)\.",
    "Detectron or Caffe2": r"[^.]+_[wb]$",
    "an ultralytics YOLO": r"(model\.)*\d+\.(conv|cv\d|m)\.",
    "a DETR": r"(.*\.)?transformer\.(encoder|decoder)\.",
    "a ViT": r"(.*\.)?blocks\.0\.attn\.",
    "an image classifier": r"(layer1\.0\.conv1|fc|features\.0|classifier)\.",
}
"""What keys look like → how one of them begins."""


class LoadedWeights(NamedTuple):
    """What identifies the weights of a model.

    Attributes:
        identity: for the detector's description: `weights_sha256` of the file, `tensors_sha256` of the loaded model.
        meta: what the checkpoint says under `meta`, as mmengine's do; {} if nothing.
    """

    identity: dict[str, str]
    meta: Mapping[str, Any]


def load_weights(model: nn.Module, path: Path, convert_names: ConvertNames | None = None) -> LoadedWeights:
    """Loads .safetensors, a checkpoint of `torch.save` or a pickle of arrays with `model.load_state_dict`.

    The state_dict may be under keys and behind prefixes, see `state_dicts`. Tensors that inference does not use are
    left out, which a line of the log says.

    Args:
        model: on the CPU.
        path: of the file; no code in it is run.
        convert_names: of a framework whose own loader renames what its models do not.

    Raises FileNotFoundError, or ValueError naming the parameters that the file lacks, or has in another shape, or that
    belong to layers which the model does not have.
    """
    checkpoint = read_checkpoint(path)
    try:
        names = convert_names(model, checkpoint) if convert_names else checkpoint
        found = find_state_dict(names, model.state_dict().keys())
        left_out = _load(model, found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    _log_left_out(path, found, left_out)
    meta = checkpoint.get("meta")
    identity = {"weights_sha256": file_sha256(path), "tensors_sha256": hash_tensors(model)}
    return LoadedWeights(identity, meta if isinstance(meta, Mapping) else {})


def hash_tensors(model: nn.Module) -> str:
    """Returns the sha256 of the model's state_dict: names in order, dtypes, shapes and bytes.

    Tensors that inference does not use, such as batch counters, do not count.
    """
    return tensors_sha256({name: tensor for name, tensor in model.state_dict().items() if _is_needed(name, tensor)})


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """Returns the sha256 of a state_dict: names in order, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load(model: nn.Module, found: FoundState) -> list[str]:
    """Loads the tensors and returns the keys of those left out. Raises ValueError listing what does not fit."""
    missing: list[str] = []
    unexpected: list[str] = []

    def record(_: nn.Module, incompatible: Any) -> None:
        missing.extend(incompatible.missing_keys)
        unexpected.extend(incompatible.unexpected_keys)

    misfits: list[str] = []
    handle = model.register_load_state_dict_post_hook(record)
    try:
        model.load_state_dict(found.state, strict=False)
    except RuntimeError as error:  # for shapes; its first line names the model's class
        lines = [" ".join(line.split()) for line in str(error).split("\n\t")[1:]]
        lines = lines or [one_line(error)]
        misfits = [SIZE_MISMATCH.sub(r"\1 has shape (\2), the model's (\3)", line) for line in lines]
    finally:
        handle.remove()
    expected = model.state_dict()
    buffers = {name for name, _ in model.named_buffers()}  # those that are not persistent were in older versions
    surplus = [key for key in unexpected if key not in buffers]
    problems = {
        "lacks {}": [key for key in missing if _is_needed(key, expected[key])],
        "{}": misfits,
        "has {}, of layers that the model does not have": [key for key in surplus if _extends(model, key)],
    }
    texts = [text.format(listed(keys)) for text, keys in problems.items() if keys]
    if texts:
        hint = _looks_like(found.state, expected)
        raise ValueError(f"weights of another model: {'; '.join(texts)}{hint}")
    return [*surplus, *found.outside]


def _log_left_out(path: Path, found: FoundState, left_out: list[str]) -> None:
    """Logs one line for other weights of the same model, and one for tensors that are not loaded."""
    if found.twins:
        taken = found.location or "no key (its top level)"
        logger.warning("%s: the weights under %s are loaded, not those under %s", path, taken, ", ".join(found.twins))
    if left_out:
        total, example = len(found.state) + len(found.outside), left_out[0]
        text = "%s: %d of %d tensors are left out, which inference with this model does not use, such as %s"
        logger.warning(text, path, len(left_out), total, example)


def _is_needed(name: str, tensor: Tensor) -> bool:
    """Returns whether inference needs a tensor of the model; integers are counters, or indices that it computes."""
    derived = name.split(".")[-1] in ("pixel_mean", "pixel_std")  # from the config
    return tensor.is_floating_point() and not derived and not TRAINING.search(name)


def _extends(model: nn.Module, key: str) -> bool:
    """Returns whether a key that the model lacks is of a further layer in a part that the model has.

    Such a layer would change what the model computes, as those of a deeper backbone do. A whole part, or a further
    RoI head, does not change the others.
    """
    if TRAINING.search(key) or BESIDE.search(key) or CLASSIFIER.match(key):
        return False
    *modules, _ = key.split(".")
    part, known = model, 0
    for name in modules:
        if name not in part._modules:
            break
        part, known = part._modules[name] or nn.Module(), known + 1
    return known > 0 and not (known == 1 and len(modules) > 1 and modules[0] in ROI_HEADS)


def _looks_like(keys: Iterable[str], expected: Iterable[str]) -> str:
    """Returns a phrase that says whose the keys are, if the model's own are not."""
    for description, beginning in KNOWN_KEYS.items():
        own = any(re.match(beginning, key) for key in expected)
        if any(re.match(beginning, key) for key in keys) and not own:
            return f"; its keys look like those of {description}"
    return ""
