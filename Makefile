# Every target sets up what it needs: a virtual environment in .venv, with the pinned versions.
PYTHON ?= python3
BIN := .venv/bin
COCO_BY ?= ../shared/data/coco_by

.PHONY: help quickstart quickstart-classify small-scale study study-quick study-detectors study-explorer pictures docs \
	notebooks test test-fast test-wheel test-newest dist test-oldest recipes-check overfit full-size proof-ddp proof-survival \
	proof-machines chaos fuzz soak cluster proof-gpu triton-check bench-step bench-attention bench-backbone \
	bench-data bench-paste bench-family bench-scale bench-eval bench-predict bench-tiles bench-export

help:
	@echo "make quickstart  train a small BoTNet Mask R-CNN on handwritten digits, from nothing"
	@echo "make quickstart-classify  train a small BoT-S1 and its ResNet on images of clothes, from nothing"
	@echo "make small-scale  the same two at more length, three seeds each, as a table"
	@echo "make study       what attention reaches that convolutions do not: 136 runs, in about two hours of one core"
	@echo "make study-quick  of it, ResNet and BoT on two tasks, one seed, in a quarter of an hour"
	@echo "make study-detectors  ResNet and BoT as detectors of blood cells and digits, three seeds each: 30 runs"
	@echo "make study-explorer  the explorer of a network of the study, which looks at a far cue"
	@echo "make pictures    the pictures of the README, with the detector of make quickstart"
	@echo "make docs        the documentation as a site, in build/site"
	@echo "make notebooks   the notebooks of the tutorials, run and written with their output"
	@echo "make test        lint, types, tests, and the wheel in an empty environment"
	@echo "make test-fast   the tests without those marked long, in a minute or two"
	@echo "make test-wheel  the wheel in an empty environment: help, counts, rows, a fit of three steps, export, explore"
	@echo "make test-oldest  the tests with the oldest releases that pyproject.toml allows, in .venv-oldest"
	@echo "make test-newest  the tests with the newest releases that pyproject.toml allows, in .venv-newest"
	@echo "make dist        the sdist and the wheel, in dist/"
	@echo "make recipes-check  every recipe builds, trains a step and evaluates (COCO_BY=folder of COCO photographs)"
	@echo "make overfit     overfit four photographs (COCO_BY as above)"
	@echo "make full-size   BoT50 Mask R-CNN at 1024 px: 3 training steps, 2 images evaluated (COCO_BY as above)"
	@echo "make proof-ddp   one step and one validation at 1024 px on 1 and on 2 devices, compared (COCO_BY as above)"
	@echo "make proof-survival  a signal, and a loss that is not finite, on one of two devices"
	@echo "make proof-machines  two machines of two processes on the loopback: one step is that of one process; one is killed"
	@echo "make soak        3,000 training steps and 20,000 predictions: memory, files, threads and time stay as they are"
	@echo "make cluster     what 8 to 64 GPUs do an epoch in, from the step times of one: STEPS='1 100 8 600' (images ms ...)"
	@echo "make chaos       kills, full disks, lost data and torn checkpoints at random moments of a training, in 15 minutes"
	@echo "make fuzz        5,000 broken instances files, masks, images, checkpoints, recipes and ONNX files"
	@echo "make proof-gpu   the layer and BoT50 proved and measured on this machine's GPU, in at most about 8 minutes"
	@echo "make triton-check  the Triton kernels interpreted on large maps and compiled for every GPU, in about 15 minutes"
	@echo "make bench-step  Mask R-CNN's training step beside torchvision's, and BoT50's beside R50's"
	@echo "make bench-attention, make bench-backbone   the layer and BoT50 beside their peers"
	@echo "make bench-attention ARGS=--contended   the layer while another process keeps a core busy"
	@echo "make bench-data  training images per second beside torchvision's reference pipeline (COCO_BY as above)"
	@echo "make bench-paste  masks from the network's grids to the image, beside torchvision's way"
	@echo "make bench-scale reading, workers and scoring at the size of COCO, listing at that of ImageNet (COCO_BY as above)"
	@echo "make bench-eval  images per second of a validation, with and without pasting and scoring on a thread"
	@echo "make bench-predict   images a second from files to masks, beside torchvision's detector of the same network"
	@echo "make bench-tiles   a large picture in tiles and whole: accuracy and memory, after make quickstart"
	@echo "make bench-export   an exported detector beside the eager one: onnxruntime, torch.compile, OpenVINO"
	@echo "make bench-family   the training step of every network of Figure 5 at its own image size"

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,test]'
	touch $@

quickstart: .venv/installed
	$(BIN)/python scripts/quickstart.py

quickstart-classify: .venv/installed
	$(BIN)/python scripts/quickstart_classify.py

small-scale: .venv/installed
	$(BIN)/python scripts/small_scale.py

study: .venv/installed
	$(BIN)/python scripts/study.py
	$(BIN)/python scripts/study_report.py

study-quick: .venv/installed
	$(BIN)/python scripts/study.py --quick
	$(BIN)/python scripts/study_report.py --quick

study-detectors: .venv/installed
	$(BIN)/python scripts/study_detectors.py

study-explorer: .venv/installed
	$(BIN)/python scripts/study_explorer.py

pictures: .venv/installed
	$(BIN)/python scripts/pictures.py

.venv/docs-installed: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

# Warnings are errors. The pages are made anew: what a page no longer says must not stay.
docs: .venv/docs-installed
	rm -rf build/site
	$(BIN)/python -m sphinx --fresh-env --fail-on-warning --keep-going --quiet --doctree-dir build/doctrees docs build/site
	$(BIN)/python scripts/check_site.py build/site

notebooks: .venv/docs-installed
	$(BIN)/python scripts/notebooks.py

test: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) test-wheel
	# Waiting threads must not spin: it would slow the tests on a busy machine.
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest

test-fast: .venv/installed
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m 'not slow and not long'

test-wheel: .venv/installed
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python scripts/check_wheel.py

.venv-oldest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet uv
	.venv-oldest/bin/uv pip install --python .venv-oldest/bin/python --resolution lowest-direct \
		--editable '.[demo,test]'
	touch $@

.venv-newest/installed: pyproject.toml
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --upgrade --editable '.[demo,test]'
	touch $@

test-newest: .venv-newest/installed
	OMP_WAIT_POLICY=PASSIVE .venv-newest/bin/python -m pytest

dist: .venv/installed
	rm -rf dist
	$(BIN)/pip install --quiet 'twine>=6.1'
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/python -m twine check --strict dist/*

test-oldest: .venv-oldest/installed
	OMP_WAIT_POLICY=PASSIVE .venv-oldest/bin/python -m pytest

recipes-check: .venv/installed
	BOTNET_COCO_BY=$(COCO_BY) OMP_WAIT_POLICY=PASSIVE \
		$(BIN)/python -m pytest -m '' tests/detection/test_recipes.py tests/classification/test_recipes.py

overfit: .venv/installed
	$(BIN)/python scripts/overfit.py $(COCO_BY)/instances_train.json $(COCO_BY)/images

full-size: .venv/installed
	$(BIN)/python scripts/full_size.py $(COCO_BY)

proof-ddp: .venv/installed
	$(BIN)/python scripts/ddp.py $(COCO_BY)

proof-survival: .venv/installed
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m slow tests/training/test_checkpoints.py

proof-machines: .venv/installed
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m slow tests/training/test_machines.py

soak: .venv/installed
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python scripts/soak.py

cluster: .venv/installed
	$(BIN)/python scripts/cluster.py --steps $(STEPS)

chaos: .venv/installed
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python scripts/chaos.py

fuzz: .venv/installed
	BOTNET_FUZZ_CASES=5000 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest tests/fuzz

proof-gpu: .venv/installed
	$(BIN)/python scripts/gpu_proof.py

triton-check: .venv/installed
	$(BIN)/python -m pytest -m slow tests/layers/test_triton_kernel.py

bench-step: .venv/installed
	$(BIN)/python benchmarks/step.py

bench-attention: .venv/installed
	$(BIN)/python benchmarks/attention.py $(ARGS)

bench-backbone: .venv/installed
	$(BIN)/python benchmarks/backbone.py

bench-data: .venv/installed
	$(BIN)/python benchmarks/data.py $(COCO_BY)

bench-paste: .venv/installed
	$(BIN)/python benchmarks/paste.py

bench-family: .venv/installed
	$(BIN)/python benchmarks/family.py

bench-scale: .venv/installed
	$(BIN)/python benchmarks/scale.py $(COCO_BY)

bench-eval: .venv/installed
	$(BIN)/python benchmarks/eval.py

bench-predict: .venv/installed
	$(BIN)/python benchmarks/predict.py

bench-tiles: .venv/installed
	$(BIN)/python benchmarks/tiles.py

bench-export: .venv/installed
	$(BIN)/python benchmarks/export.py
