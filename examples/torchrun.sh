#!/usr/bin/env bash
# One machine with eight GPUs and caches in an object store. Install s3fs for s3://, gcsfs for gs:// or adlfs for az://;
# each reads the credentials of its provider's own tools.

set -euo pipefail
BUCKET=${BUCKET:-s3://my-bucket/lvis}
DETECTOR=(--detector detectron2 --config-file cascade.yaml --weights cascade.pth)

torchrun --nproc-per-node 8 -m extract "${DETECTOR[@]}" --split train --min-images-per-class 100 \
    --annotations lvis_v1_train.json --images coco --out "$BUCKET/train.zarr"
torchrun --nproc-per-node 8 -m extract "${DETECTOR[@]}" --split val --train-annotations lvis_v1_train.json \
    --annotations lvis_v1_val.json --images coco --out "$BUCKET/val.zarr"
torchrun --nproc-per-node 8 -m calib.train --cache "$BUCKET/train.zarr" --out head
python -m fuse --cache "$BUCKET/val.zarr" --head head --annotations lvis_v1_val.json --out runs/cat
