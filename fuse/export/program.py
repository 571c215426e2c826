"""Compiles calibrated scores to a torch program for servers that have torch and nothing else."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from extract.utils.files import write_bytes
from fuse.export.module import CalibratedScores
from fuse.export.own_order import OwnOrderScores

INPUTS_FILE = "inputs.txt"
"""Extra file in a program: what its inputs are. `torch.export.load(path, extra_files={"inputs.txt": ""})` reads it."""


def described_shape(shape: Sequence[int]) -> str:
    """Returns the shape of an input or output of any number of RoIs, (R, *shape)."""
    return f"(R, {', '.join(map(str, shape))})" if shape else "(R,)"


def save_program(scores: CalibratedScores | OwnOrderScores, feature_shape: Sequence[int], path: str | Path) -> None:
    """Writes a program that `torch.export.load(path).module()` loads without this library.

    The program is called like the module, with any number of RoIs, in float32 and on the CPU. `INPUTS_FILE` in it
    states the shapes.

    Args:
        scores: the module, weights loaded.
        feature_shape: D, of one RoI.
        path: the .pt2 file.
    """
    stages = scores.num_stages
    example = [torch.zeros(2, stages, *feature_shape), torch.zeros(2, stages, scores.num_outputs + 1)]
    example += [torch.full((2,), 0.5)] if "objectness" in scores.inputs else []
    rois = torch.export.Dim("rois", min=0, max=1 << 20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own internals while it traces
        program = torch.export.export(scores.cpu(), tuple(example), dynamic_shapes=({0: rois},) * len(example))
        content = io.BytesIO()
        outputs = described_shape(example[1][:, 0].shape[1:])
        inputs = [
            f"{name} float32 {described_shape(one.shape[1:])}" for name, one in zip(scores.inputs, example, strict=True)
        ]
        text = f"{', '.join(inputs)} -> scores float32 {outputs}, background last\n"
        torch.export.save(program, content, extra_files={INPUTS_FILE: text})
    write_bytes(path, content.getvalue())
