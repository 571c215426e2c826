"""The error for a loss that is not finite."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import numpy as np
import torch

from calib.features import Features
from calib.sampler import BiLevelSampler
from extract.utils.distributed import all_reduce_min

if TYPE_CHECKING:
    from extract import RoICache


def raise_not_finite(cache: RoICache, sampler: BiLevelSampler, features: Features, steps: range, lr: float) -> NoReturn:
    """Raises a ValueError that names the first RoI of these steps whose features are not finite, else the steps.

    Under torchrun all processes call it, with the same steps.
    """
    num_rows = int(cache.offsets[-1])
    for step in steps:
        drawn = [sampler.step(step, stage).rows for stage in range(len(cache.stages))]
        own = [rows[features.is_own(rows)] for rows in drawn]
        for stage, halves in enumerate(features.fetch(own)):
            bad = own[stage][~torch.isfinite(halves).all(1).cpu().numpy()]
            row = all_reduce_min(int(bad.min(initial=num_rows)), halves.device)
            if row < num_rows:
                image = int(np.searchsorted(cache.offsets, row, side="right")) - 1
                raise ValueError(
                    f"{cache.url}: image {cache.images['image_id'].iloc[image]}: features of RoI "
                    f"{row - cache.offsets[image]} (row {row}), stage {stage}, are not finite"
                )
    raise ValueError(
        f"the loss is not finite between steps {steps.start} and {steps.stop}, though the features are: "
        f"lower lr (now {lr:g})"
    )
