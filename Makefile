# Two commands from a fresh clone: `make demo` and `make test`. They need Python 3.11 or later and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DATA ?= data/minilvis
# plain or rfs: how the demo's detector was trained.
SAMPLING ?= plain
RUN ?= data/$(SAMPLING)
DETECTOR = --detector torchvision:benchmarks.minilvis.detector:mask_rcnn \
    --weights benchmarks/minilvis/weights/$(SAMPLING).safetensors

.PHONY: demo tables test test-slow lint

demo: $(VENV)/demo
	test -e $(DATA)/test.json || $(BIN)/python -m benchmarks.minilvis.make --out $(DATA)
	$(BIN)/python -m extract $(DETECTOR) --split train --images-per-class 20 \
	    --annotations $(DATA)/train.json --images $(DATA)/train --out $(RUN)/train.zarr
	$(BIN)/python -m extract $(DETECTOR) --split val --proposals 300 --train-annotations $(DATA)/train.json \
	    --annotations $(DATA)/val.json --images $(DATA)/val --out $(RUN)/val.zarr
	$(BIN)/python -m calib.train --cache $(RUN)/train.zarr --out $(RUN)/head --steps 2000
	$(BIN)/python -m fuse sweep --cache $(RUN)/val.zarr --head $(RUN)/head --annotations $(DATA)/val.json \
	    --out $(RUN)/sweep

# The tables of the README.
tables:
	$(MAKE) demo SAMPLING=plain
	$(MAKE) demo SAMPLING=rfs
	$(BIN)/python -m extract $(DETECTOR) --split val --level logits --masks False \
	    --train-annotations $(DATA)/train.json --annotations $(DATA)/val.json --images $(DATA)/val \
	    --out data/plain/proposals.zarr
	$(BIN)/python -m benchmarks.readme plain=data/plain/sweep rfs=data/rfs/sweep recall=data/plain/proposals.zarr

test: $(VENV)/frameworks
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/frameworks
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# detectron2 is not on PyPI. Its tests run against a pure-Python wheel of a fork, which is made for no Python in
# particular but declares an old one; mmdetection's against the edition of mmcv that has no compiled operators.
DETECTRON2 = sal-detectron2==0.7.2
$(VENV)/frameworks: $(VENV)/dev
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[detectron2]' mmcv-lite mmengine mmdet
	$(BIN)/pip install --quiet --no-deps --only-binary=:all: --python-version 3.10 --upgrade \
	    --target "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" $(DETECTRON2)
	@touch $@

# An installation is marked by a file named after its extra, so that it is done once, and again after a change.
$(VENV)/%: setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "error: $(PYTHON) is older than 3.11; try make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) \
	    || { echo "error: $(PYTHON) cannot make virtual environments; install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[$*]'
	@touch $@
