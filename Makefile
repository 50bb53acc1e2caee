# Two commands do everything: `make demo` and `make test`. Both set up .venv first.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TRACES := $(wildcard simulations/tiny_moe/traces/*.npz)

.PHONY: demo test check setup proto bench lock clean

demo: setup
	@mkdir -p demo
	$(BIN)/placer plan $(TRACES) --topology simulations/tiny_moe/cpus.yaml --redundant 4 \
		--dispatch dedup --holdout 0.5 --out demo/plan.json --html demo/report.html
	$(BIN)/placer check demo/plan.json
	@echo "Open demo/report.html in a browser."

test: setup
	$(BIN)/pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -m "not slow"

# Python from protos/, which is committed.
proto: setup
	$(BIN)/python -m grpc_tools.protoc -I protos --python_out=. --grpc_python_out=. \
		protos/placer/v1/*.proto

bench: setup
	$(BIN)/python -m bench

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -c "import placer.optimizers.joint"  # compiles its kernels, once
	@touch $@

# Newest versions of everything, written down for everybody.
lock:
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --upgrade -e '.[dev]'
	$(BIN)/pip freeze --exclude-editable | sort -f > constraints.txt
	@touch $(READY)

clean:
	rm -rf $(VENV) demo
