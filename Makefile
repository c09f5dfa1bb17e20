# The two commands: `make run` compresses the demo's BERT, `make test` runs all tests. Each sets itself up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: run test lint setup clean

run: setup
	$(BIN)/bertnas run experiment_configs/studies/demo.yml

test: setup $(VENV)/.enas
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

setup: $(VENV)/.installed

# torch is pinned in constraints.txt; where it is not a CPU build, set PIP_EXTRA_INDEX_URL to PyTorch's own index.
$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,wandb,vectors,plots,dev]'
	touch $@

# Apart, as NNI imports it wherever it is installed, and every trial would start later.
$(VENV)/.enas: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[enas]'
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
