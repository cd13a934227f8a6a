# make demo, make test: the two commands. Each installs what is missing first.
# EXTRA=gpu installs the GPU builds; ARGS are handed on: make demo ARGS="--seed 3"

PYTHON ?= python3.11
EXTRA ?= cpu
ARGS ?=
OPENCV := 5.0.0.93
ONNXRUNTIME_GPU := 1.31.1

BIN := .venv/bin
HOUSE := tests/test_layers.py tests/test_house.py
STAMP := .venv/.installed-$(EXTRA)

.PHONY: install demo demo-full test test-slow test-long test-capped check bench models clean help

help:  ## these lines
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

install: $(STAMP)  ## make .venv with everything in it

# Two packages of one name each hide the build that we want: the desktop OpenCV that insightface asks
# for, and the CPU onnxruntime beside the GPU one. pip cannot replace a dependency, so the wanted build
# is laid over the other. See docs/decisions/0001-opencv-without-a-desktop.md.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRA),dev]'
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps opencv-python-headless==$(OPENCV)
ifeq ($(EXTRA),gpu)
	$(BIN)/python -m pip install --quiet --force-reinstall --no-deps onnxruntime-gpu==$(ONNXRUNTIME_GPU)
endif
	$(BIN)/python -c 'import cv2, torch, torchvision, onnxruntime, open_clip'
	touch $@

demo: install  ## the whole road on the drawn world, with numbers and report.html
	$(BIN)/namedmask demo $(ARGS)

demo-full: install  ## the same with more images and longer training
	$(BIN)/namedmask demo --full $(ARGS)

test: check  ## checks, quick tests, and the numerical ones with fewer instructions
	$(BIN)/python -m pytest -m "not slow and not long" $(HOUSE:%=--ignore=%) $(ARGS)
	$(MAKE) test-capped

# A processor without AVX-512 and VNNI, as far as torch and oneDNN can be told to be one; then no int8.
test-capped: install
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 NAMEDMASK_INT8=off \
		$(BIN)/python -m pytest -m "numerical and not slow and not long" $(ARGS)

test-slow: install  ## the tests that take longer than a few seconds
	$(BIN)/python -m pytest -m "slow and not long" $(ARGS)

test-long: install  ## the tests that take longer than a few minutes
	$(BIN)/python -m pytest -m long $(ARGS)

check: install  ## format, lint, spelling, types, layers, sizes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/python -m pytest -q $(HOUSE)

bench: install  ## side-by-side measurements, one line each
	@set -e; for file in $(wildcard bench/*.py); do echo "== $$file"; $(BIN)/python "$$file" $(ARGS); done

models: install  ## train the mini world's tiny models again
	$(BIN)/python -m namedmask.miniworld.training build/collection

clean:  ## remove caches and builds; .venv and runs/ stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find namedmask tests -name __pycache__ -type d -prune -exec rm -rf {} +
