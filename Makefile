# One virtual environment, one command for each thing a user or a developer does.
#
#   make generate   a video on two processes, into outputs/
#   make test       the tests
#   make check      lint, types and tests: what CI runs
#   make bench      attention, dense against sparse
#   make gpu        tests and benchmarks that need CUDA
#
# Where there is a GPU, the newest PyTorch of the tested range is installed; elsewhere the version
# that the tests run with, as a CPU build if the package index has that. To choose yourself:
#   make TORCH="torch==2.13.0"      any requirement that pip takes
#   make VENV=/path/to/venv         an environment elsewhere
#   make PIP="uv pip"               uv instead of pip; UV_TORCH_BACKEND=cpu picks the CPU build

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
PIP ?= $(BIN)/python -m pip
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo yes)
TORCH ?= $(if $(HAS_GPU),torch,torch==2.13.0)
NPROC ?= $(if $(HAS_GPU),$(shell nvidia-smi -L | wc -l),2)
PROMPT ?= a red circle bounces
export TOKENIZERS_PARALLELISM := false
export VIRTUAL_ENV := $(abspath $(VENV))

.PHONY: install generate test lint types check bench gpu clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet "$(TORCH)" --editable ".[dev]"
	touch $@

generate: install
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node=$(NPROC) launch/generate.py \
	  --model tiny-wan --prompt "$(PROMPT)" --num-frames 161 --lvsa --rotate-keyframes \
	  --output-dir outputs

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

check: lint types test

bench: install
	$(BIN)/python studies/bench/attention.py --output-dir outputs/bench

gpu: install
	@if $(BIN)/python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then \
	  set -ex; \
	  $(BIN)/python -m pytest -m gpu; \
	  $(BIN)/python studies/bench/attention.py --device cuda --dtype bfloat16 --frames 41 81 --tokens 1560 \
	    --heads 12 --head-dims 128 --ranks 1 --output-dir outputs/bench-gpu; \
	else \
	  echo "make gpu: PyTorch sees no CUDA device here, so nothing was tested or measured"; \
	fi

clean:
	rm -rf outputs build .mypy_cache .ruff_cache .pytest_cache .hypothesis
