#!/usr/bin/env bash
# One machine with eight GPUs, caches in an object store: pip install s3fs reads s3://, gcsfs gs://, adlfs az://.
# Credentials are taken from where those look for them.

set -euo pipefail
BUCKET=${BUCKET:-s3://my-bucket/lvis}
DETECTOR=(--detector detectron2 --config-file cascade.yaml --weights cascade.pth)

torchrun --nproc-per-node 8 -m extract "${DETECTOR[@]}" --split train --min-images-per-class 100 \
    --annotations lvis_v1_train.json --images coco --out "$BUCKET/train.zarr"
torchrun --nproc-per-node 8 -m extract "${DETECTOR[@]}" --split val --train-annotations lvis_v1_train.json \
    --annotations lvis_v1_val.json --images coco --out "$BUCKET/val.zarr"
torchrun --nproc-per-node 8 -m calib.train --cache "$BUCKET/train.zarr" --out head
python -m fuse --cache "$BUCKET/val.zarr" --head head --annotations lvis_v1_val.json --out runs/cat
