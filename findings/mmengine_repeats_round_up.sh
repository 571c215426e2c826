#!/usr/bin/env bash
# mmengine 0.10.7: ClassBalancedDataset, mmdetection's repeat-factor sampling, rounds every repeat factor up.
# Guess: an image of repeat factor 1.05 is seen 1.05 times per epoch on average, as the LVIS paper describes and
#   detectron2 does by rounding at random.
# Behaviour: it is seen twice, like one of 2.0. In LVIS v0.5 at the usual threshold of 0.001 an eighth of the images have
#   a factor between 1 and 2: an epoch has 1.25 times the images instead of 1.14. So "RFS" of the two frameworks is not
#   one recipe, and a calibrated detector's baseline depends on which of them trained it.
# Seen: factors 1.05 1.49 2.00; images per epoch mmengine 2 2 2, detectron2 (mean of 4,000 epochs) 1.05 1.50 2.00
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile mmengine==0.10.7 torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 \
    fvcore==0.1.5.post20221221 iopath==0.1.10 omegaconf==2.3.1 cloudpickle==3.1.3 tabulate==0.10.0 pycocotools==2.0.11
"$work/venv/bin/pip" install --quiet --no-compile --no-deps --only-binary=:all: --python-version 3.10 \
    --target "$work/detectron2" sal-detectron2==0.7.2
PYTHONPATH="$work/detectron2" "$work/venv/bin/python" -W ignore - <<'EOF'
import numpy as np
import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler
from mmengine.dataset import BaseDataset, ClassBalancedDataset

THRESHOLD, IMAGES, EPOCHS = 0.01, 100_000, 4000
IMAGES_OF_CLASS = {0: 907, 1: 450, 2: 250}
"""Class → images: factors sqrt(THRESHOLD * IMAGES / images) of 1.05, 1.49 and 2."""
labels = np.full(IMAGES, 3)  # a class that is in most images
starts = np.cumsum([0, *IMAGES_OF_CLASS.values()])
for label, start in zip(IMAGES_OF_CLASS, starts):
    labels[start : start + IMAGES_OF_CLASS[label]] = label


class Images(BaseDataset):
    def load_data_list(self):
        return [{"label": label} for label in labels.tolist()]

    def get_cat_ids(self, index):
        return [self.get_data_info(index)["label"]]


repeated = ClassBalancedDataset(Images(serialize_data=False, pipeline=[]), oversample_thr=THRESHOLD)
mmengine = np.bincount(repeated.repeat_indices, minlength=IMAGES)[starts[:3]]

records = [{"annotations": [{"category_id": label}]} for label in labels.tolist()]
factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, THRESHOLD)[starts[:3]]
sampler = RepeatFactorTrainingSampler(factors, shuffle=False)
generator = torch.Generator()
generator.manual_seed(0)
epochs = [np.bincount(sampler._get_epoch_indices(generator), minlength=3) for _ in range(EPOCHS)]
detectron2 = np.mean(epochs, axis=0)
print("factors", *(f"{factor:.2f}" for factor in factors.tolist()))
print("images per epoch: mmengine", *mmengine.tolist(), "detectron2", *(f"{count:.2f}" for count in detectron2))
assert mmengine.tolist() == [2, 2, 2]
assert np.abs(detectron2 - factors.numpy()).max() < 0.05
EOF
