PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN ?= runs/demo
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: run test lint types unit slow table clean

run: $(BIN)/.installed
	$(BIN)/deltatune demo --output $(RUN)

test: lint types unit

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(BIN)/.installed
	$(BIN)/mypy

unit: $(BIN)/.installed
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow and not gpu"

slow: $(BIN)/.installed
	$(BIN)/pytest -m "slow and not gpu"

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

table: $(BIN)/.installed
	$(BIN)/python -m deltatune.readme_tables README.md

clean:
	rm -rf $(VENV) runs .mypy_cache .pytest_cache .ruff_cache
