# One virtual environment, one command for each thing a user or a developer does.
#
#   make generate   a video on two processes, into outputs/
#   make test       the tests
#   make check      lint, types and tests
#   make test-netns     bytes between two nodes, network namespaces of this host; needs root, iproute2
#   make test-slurm     the batch scripts on a real Slurm of two nodes on this host; needs root
#   make test-serving   the tests that need vLLM-Omni, in an environment of their own
#   make bench      attention, dense against sparse
#   make gpu        tests and benchmarks that need CUDA
#
# Where there is a GPU, the newest PyTorch of the tested range is installed; elsewhere the version
# that the tests run with, as a CPU build if the package index has that. To choose yourself:
#   make TORCH="torch==2.13.0"      any requirement that pip takes
#   make VENV=/path/to/venv         an environment elsewhere
#   make test WORKERS=1             one test after another
#   make PIP="uv pip"               uv instead of pip; UV_TORCH_BACKEND=cpu picks the CPU build

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
PIP ?= $(BIN)/python -m pip
SERVING_VENV ?= .venv-serving
SERVING := tests/serving/environment
UV ?= uv==0.13.9
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && echo yes)
TORCH ?= $(if $(HAS_GPU),torch,torch==2.13.0)
# Files of tests run side by side; many of them start up to four processes of their own.
WORKERS ?= 2
NPROC ?= $(if $(HAS_GPU),$(shell nvidia-smi -L | wc -l),2)
PROMPT ?= a red circle bounces
# uv reads no settings of pip's: a folder of wheels that pip finds is handed to it.
export UV_FIND_LINKS ?= $(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null)
export TOKENIZERS_PARALLELISM := false
export VIRTUAL_ENV := $(abspath $(VENV))

.PHONY: install generate test lint types check test-netns test-slurm test-serving lock-serving bench gpu clean

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml $(SERVING)/requirements.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet "$(TORCH)" --editable ".[dev]"
	# The files of vLLM-Omni alone, where nothing imports them unless a test says so.
	$(PIP) install --quiet --no-deps --upgrade --target $(VENV)/share/vllm-omni \
	  $(shell grep -E '^(vllm-omni|aenum)==' $(SERVING)/requirements.txt)
	# FlashInfer's wheel as it is: its signatures are read, and nothing of it runs.
	rm -rf $(VENV)/share/flashinfer
	$(BIN)/python -m pip download --quiet --no-deps --dest $(VENV)/share/flashinfer \
	  "$(shell grep -oE 'flashinfer-python[^"]*' pyproject.toml)"
	touch $@

generate: install
	OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node=$(NPROC) launch/generate.py \
	  --model tiny-wan --prompt "$(PROMPT)" --num-frames 161 --lvsa --rotate-keyframes \
	  --output-dir outputs

test: install
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

test-netns: install
	$(BIN)/python -m pytest -m netns tests/studies

test-slurm: install
	@command -v slurmctld munged >/dev/null || { set -ex; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  apt-get install -y --no-install-recommends slurm-wlm munge || { apt-get update && \
	  apt-get install -y --no-install-recommends slurm-wlm munge; }; }
	$(BIN)/python -m pytest -m slurm tests/slurm

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

check: lint types test

test-serving: $(SERVING_VENV)/.installed
	PYTHONPATH=$(CURDIR)/tests/serving/support/site HF_HUB_OFFLINE=1 $(SERVING_VENV)/bin/python \
	  -m pytest tests/serving -m vllm_omni --timeout 300

$(SERVING_VENV)/.installed: pyproject.toml $(SERVING)/requirements.txt
	test -x $(SERVING_VENV)/bin/python || $(PYTHON) -m venv $(SERVING_VENV)
	$(SERVING_VENV)/bin/python -m pip install --quiet "$(UV)"
	VIRTUAL_ENV=$(abspath $(SERVING_VENV)) $(SERVING_VENV)/bin/uv pip install --quiet --no-deps \
	  --requirement $(SERVING)/requirements.txt
	VIRTUAL_ENV=$(abspath $(SERVING_VENV)) $(SERVING_VENV)/bin/uv pip install --quiet --no-deps \
	  --no-build-isolation --editable .
	# Built for CUDA: its Python part imports without them.
	rm -f $(SERVING_VENV)/lib/python*/site-packages/torchaudio/lib/*.so
	# Half of an import's time otherwise, in every process. Some packages hold other versions' syntax.
	-$(SERVING_VENV)/bin/python -m compileall -q -j 2 $(SERVING_VENV)/lib >/dev/null
	touch $@

lock-serving: $(SERVING_VENV)/.installed
	$(SERVING_VENV)/bin/uv pip compile --quiet --python-version 3.11 --no-annotate \
	  --custom-compile-command "make lock-serving" --override $(SERVING)/overrides.txt \
	  $(SERVING)/requirements.in --output-file $(SERVING)/requirements.txt
	# Whichever build of PyTorch an index has.
	sed -i -E 's/^(torch==[0-9.]+)\+.*/\1/' $(SERVING)/requirements.txt

bench: install
	$(BIN)/python studies/bench/attention.py --output-dir outputs/bench

# Where nothing can be downloaded, the script says which wheels to bring.
gpu:
	-@$(MAKE) --no-print-directory install
	@$(or $(wildcard $(BIN)/python),$(PYTHON)) studies/bench/gpu.py

clean:
	rm -rf outputs build .mypy_cache .ruff_cache .pytest_cache .hypothesis
