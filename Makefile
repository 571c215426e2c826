# Two commands from a fresh clone: `make demo` and `make test`. They need Python 3.11 or later and nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Which dataset: minilvis, or coco, the same images annotated in COCO's format; or the folder of a Mini-LVIS.
DATA ?= minilvis
FOLDER = $(if $(filter minilvis coco,$(DATA)),data/minilvis,$(DATA))
COCO = $(filter coco,$(DATA))
# The folder of the annotation files.
ANNOTATIONS = $(FOLDER)$(if $(COCO),/coco)
# Which of the trained detectors: plain, rfs, quarter (torchvision; the last has a quarter of plain's training), cascade
# (detectron2) or htc (mmdetection).
DETECTOR ?= plain
# default: hidden features, and the head type that they call for. paper: pooled features, from which all layers are
# trained; the results of the documents, except for those of the default recipe, need its caches and heads.
RECIPE ?= default
PAPER = $(filter paper,$(RECIPE))
RUN ?= data/$(if $(PAPER),,demo/)$(DETECTOR)$(if $(COCO),-coco)
LEVEL = --level $(if $(PAPER),pooled,hidden)
DIRECTIONS = $(if $(PAPER),,--projection-from $(RUN)/train.zarr)
STEPS = $(if $(PAPER),2000,3000)
WEIGHTS = --weights benchmarks/minilvis/weights/$(DETECTOR).safetensors
SPEC_plain = --detector torchvision:benchmarks.minilvis.detector:mask_rcnn $(WEIGHTS)
SPEC_rfs = $(SPEC_plain)
SPEC_quarter = $(SPEC_plain)
SPEC_cascade = --detector detectron2:benchmarks.minilvis.cascade:register \
    --config-file benchmarks/minilvis/cascade.yaml $(WEIGHTS)
SPEC_htc = --detector mmdet --config-file benchmarks/minilvis/htc.py $(WEIGHTS)
# Detectors run NMS on one thread, so two processes with half of the threads each are faster than one with all.
PROCESSES ?= 2
THREADS = $(or $(OMP_NUM_THREADS),$(shell echo $$((($$(getconf _NPROCESSORS_ONLN) + $(PROCESSES) - 1) / $(PROCESSES)))))
# mmcv without compiled operators needs torchvision's in their place.
EXTRACT = OMP_NUM_THREADS=$(THREADS) $(BIN)/torchrun --nproc-per-node $(PROCESSES) \
    -m $(if $(filter htc,$(DETECTOR)),benchmarks.mmcv_ext )extract
NEEDS = $(if $(filter cascade htc,$(DETECTOR)),frameworks,demo)

.PHONY: demo tables live pictures notebooks bench reliability test test-fast test-slow lint types hooks docs

demo: $(VENV)/$(NEEDS)
	test -e $(FOLDER)/test.json || $(BIN)/python -m benchmarks.minilvis.make --out $(FOLDER)
	test -e $(ANNOTATIONS)/test.json || $(BIN)/python -m benchmarks.minilvis.coco $(FOLDER)
	$(EXTRACT) $(SPEC_$(DETECTOR)) --split train $(LEVEL) --min-images-per-class 20 \
	    --annotations $(ANNOTATIONS)/train.json --images $(FOLDER)/train --out $(RUN)/train.zarr
	$(EXTRACT) $(SPEC_$(DETECTOR)) --split val $(LEVEL) $(DIRECTIONS) --proposals 300 \
	    --train-annotations $(ANNOTATIONS)/train.json \
	    --annotations $(ANNOTATIONS)/val.json --images $(FOLDER)/val --out $(RUN)/val.zarr
	$(BIN)/python -m calib.train --cache $(RUN)/train.zarr --out $(RUN)/head --steps $(STEPS)
	$(BIN)/python -m fuse sweep --cache $(RUN)/val.zarr --head $(RUN)/head --annotations $(ANNOTATIONS)/val.json \
	    --out $(RUN)/sweep

tables pictures bench: export RECIPE = paper
# The tables of docs/results.md, and those of the README.
tables: export OMP_NUM_THREADS = 1
tables:
	$(MAKE) demo DETECTOR=plain
	$(MAKE) demo DETECTOR=rfs
	$(MAKE) demo DETECTOR=quarter
	$(MAKE) demo DETECTOR=cascade
	$(MAKE) demo DETECTOR=htc
	$(MAKE) demo DETECTOR=plain DATA=coco
	$(BIN)/python -m benchmarks.derived data/plain
	$(BIN)/python -m benchmarks.folding data/cascade
	$(BIN)/python -m benchmarks.recipes data/plain data/rfs data/quarter data/cascade data/htc
	$(BIN)/python -m benchmarks.selection plain
	$(BIN)/python -m benchmarks.coverage data/plain
	$(BIN)/python -m benchmarks.paper 1 2 3 4 5 6 7 8 9 10 11 heads length lr tail simcal
	$(BIN)/python -m benchmarks.documents plain=data/plain/sweep rfs=data/rfs/sweep cascade=data/cascade/sweep \
	    htc=data/htc/sweep coco=data/plain-coco/sweep

# Time of live inference with and without calibration: a table of docs/results.md.
live: $(VENV)/frameworks
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.live
	$(BIN)/python -m benchmarks.documents

# The pictures of the README.
pictures:
	$(MAKE) demo DETECTOR=plain
	$(BIN)/python -m benchmarks.pictures

# The notebooks with their output, in build/notebooks: a few minutes each.
notebooks: $(VENV)/dev
	test -e data/minilvis/test.json || $(BIN)/python -m benchmarks.minilvis.make
	test -e data/minilvis/coco/test.json || $(BIN)/python -m benchmarks.minilvis.coco data/minilvis
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.notebooks

# The tables and plots of docs/performance.md. Run nothing else meanwhile.
BENCHMARKS = nms detection training hidden streaming storage extraction precision painting evaluation sweep reading imports compilation growth cost demo
bench: $(VENV)/frameworks
	test -e $(FOLDER)/test.json || $(BIN)/python -m benchmarks.minilvis.make --out $(FOLDER)
	test -e data/plain/head || $(MAKE) demo DETECTOR=plain
	for name in $(BENCHMARKS); do $(BIN)/python -m benchmarks.speed.$$name || exit; done
	$(BIN)/python -m benchmarks.documents

# Each worker process has a thread and up to 2 GB.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses=4

# The figures of docs/reliability.md, in a few hours: commands are killed at each of their steps.
reliability: $(VENV)/frameworks
	test -e data/plain/head || $(MAKE) demo RECIPE=paper
	for name in kills damage inputs disk memory; do OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.reliability.$$name --save || exit; done
	$(BIN)/python -m benchmarks.documents

test: $(VENV)/frameworks
	$(PYTEST) -m "not slow"

# A minute or two: without the frameworks, without tests that start processes and without long ones.
FAST = not framework and not process and not long and not slow
test-fast: $(VENV)/dev
	$(PYTEST) -m "$(FAST)"

test-slow: $(VENV)/frameworks
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

types: $(VENV)/dev
	$(BIN)/mypy

# `git commit` then checks what `make lint` does.
hooks: $(VENV)/dev
	$(BIN)/pre-commit install

# The API reference: public names, and the interfaces of docs/extending.md. pdoc warns of annotations of dataclasses and
# named tuples that it cannot evaluate, and shows them as they are written.
API = extract extract.detectors.base calib calib.scoring calib.head_types fuse fuse.scores
docs: $(VENV)/dev
	$(BIN)/python -W error -W "ignore:Error parsing type annotation" -m pdoc --docformat google \
	    --output-directory build/api $(API)

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
