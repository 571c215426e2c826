# Two commands from a fresh clone: `make demo` and `make test`. They need Python 3.11 or later and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DATA ?= data/minilvis
RUN ?= data/demo
WEIGHTS = benchmarks/minilvis/weights/plain.safetensors
DETECTOR = --detector torchvision:benchmarks.minilvis.detector:mask_rcnn --weights $(WEIGHTS)

.PHONY: demo test test-slow lint tables

demo: $(VENV)/demo
	$(BIN)/python -m benchmarks.minilvis.make --out $(DATA)
	$(BIN)/python -m extract $(DETECTOR) --split train --images-per-class 10 \
	    --annotations $(DATA)/train.json --images $(DATA)/train --out $(RUN)/train.zarr
	$(BIN)/python -m extract $(DETECTOR) --split val --proposals 300 --train-annotations $(DATA)/train.json \
	    --annotations $(DATA)/val.json --images $(DATA)/val --out $(RUN)/val.zarr
	$(BIN)/python -m calib.train --cache $(RUN)/train.zarr --out $(RUN)/head --steps 2000
	$(BIN)/python -m fuse sweep --cache $(RUN)/val.zarr --head $(RUN)/head --annotations $(DATA)/val.json \
	    --out $(RUN)/sweep

test: $(VENV)/dev
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# An installation is marked by a file of its own extra's name, so that it is done once and again after a change.
$(VENV)/%: setup.cfg constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "error: $(PYTHON) is older than 3.11; try make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) \
	    || { echo "error: $(PYTHON) cannot make virtual environments; install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[$*]'
	@touch $@
