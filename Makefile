# The two commands: `make run` compresses the demo's BERT, `make test` runs all tests. Each sets itself up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := experiment_configs/studies/demo.yml
export HF_HUB_OFFLINE ?= 1
export NO_MKDOCS_2_WARNING ?= 1
export GOMP_SPINCOUNT ?= 1000

.PHONY: run test lint docs site configs setup clean

run: setup
	$(BIN)/bertnas run $(DEMO)

test: lint site $(VENV)/.enas $(VENV)/.chromium
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	$(BIN)/python docs/generate.py
	$(MAKE) site

site: setup
	$(BIN)/mkdocs build --strict --quiet

# The experiment files that hold the demo's search space.
configs: setup
	$(BIN)/python -c "from pathlib import Path; from nni_bertnas.launch.nni_files import write_cell_files; \
	write_cell_files(Path('experiment_configs'), Path('$(DEMO)'))"

setup: $(VENV)/.installed

# torch is pinned in constraints.txt; where it is not a CPU build, set PIP_EXTRA_INDEX_URL to PyTorch's own index.
$(VENV)/.installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip -c constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[demo,wandb,vectors,completion,export,serve,openvino,tensorboard,plots,docs,dev]'
	touch $@

# Apart, as NNI imports it wherever it is installed, and every trial would start later.
$(VENV)/.enas: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[enas]'
	touch $@

# The browser that the report's page is tested in; where it is missing and nobody is root, those tests are skipped.
$(VENV)/.chromium: $(VENV)/.installed
	if command -v chromium >/dev/null; then touch $@; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	apt-get update -qq && apt-get install -qq -y --no-install-recommends chromium >/dev/null && touch $@; \
	else echo "no chromium, and no apt-get as root: the tests in a browser are skipped"; fi

clean:
	rm -rf $(VENV) runs build *.egg-info
