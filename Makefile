# The commands of a contributor; `make` lists them.
#
# Everything runs in the virtual environment .venv, which is made when it is first needed, from $(BOOTSTRAP). To use an
# interpreter that has all packages already: make test PYTHON=/path/to/python

BOOTSTRAP ?= python3
VENV ?= .venv
MINDSPORE_VENV ?= .venv-mindspore
JOBS ?= 2
F ?=
SHARD ?= 0/1

ifdef PYTHON
ready =
installed = PYTHONPATH=$(CURDIR)/src $(PYTHON)
else
PYTHON := $(VENV)/bin/python
# what a target needs, as stamps in the environment: the packages of an extra of pyproject.toml
ready = $(VENV)/.ready-$(1)
installed = $(PYTHON)
endif

in_src = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} PYTHONPATH=$(CURDIR)/src $(PYTHON)

.PHONY: help setup fix lint test family catalog parity parity-mindcv certify bench docs demo
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## */\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

setup: $(call ready,test) $(call ready,lint) ## the environment with all that the other commands need

demo: $(call ready,demo) ## the main job on examples/photos: classes, pyramid, embeddings, a picture, in demo-out/
	$(installed) examples/demo.py --out demo-out

test: $(call ready,test) ## the test suite (T="tests/cli -x": a part of it)
	$(in_src) -m pytest -n $(JOBS) $(T)

lint: $(call ready,lint) ## ruff and mypy
	$(PYTHON) -m ruff check src tests benchmarks examples tools
	$(PYTHON) -m mypy

fix: $(call ready,lint) ## what ruff can put right by itself
	$(PYTHON) -m ruff check --fix src tests benchmarks examples tools

family: $(call ready,test) ## F=resnet: one family's keys against timm, its tests, the contract
	@test -n "$(F)" || { echo "name a family: make family F=resnet"; exit 2; }
	$(in_src) tests/parity/oracle.py --keys --module $(F)
	$(in_src) -m pytest -n $(JOBS) $(wildcard tests/models/test_$(F).py) tests/contract -k "$(F) or test_$(F)"

catalog: $(call ready,test) ## measure the architectures of F=resnet (or of all) into src/ziggurat/catalog
	$(in_src) tools/catalog.py $(F)

parity: $(call ready,test) ## every architecture against timm, resumable (hours; SHARD=0/4: every fourth)
	$(in_src) tests/parity/oracle.py --shard $(SHARD) --resume parity-results/shard-$(subst /,-of-,$(SHARD)).json

parity-mindcv: $(call ready,test) $(MINDSPORE_VENV)/.ready ## MindCV's outputs anew (2.8 GB of MindSpore), and our networks against them
	$(MINDSPORE_VENV)/bin/python tests/parity/make_mindcv.py
	$(in_src) tests/parity/mindcv_names.py
	$(in_src) tests/parity/mindcv.py

certify: $(call ready,test) ## every class x view x format x fixed or free sizes, resumable (hours; SHARD=0/4), into docs/exports.md
	$(in_src) tools/certify.py --shard $(SHARD) --resume certify-results/shard-$(subst /,-of-,$(SHARD)).jsonl
	$(in_src) tools/certify.py --write certify-results/*.jsonl

bench: $(call ready,test) ## each benchmark, with its ratio to a peer (about an hour)
	@status=0; for file in benchmarks/*.py; do echo "== $$file"; PYTHONPATH=$(CURDIR)/src $(PYTHON) $$file || status=1; done; exit $$status

docs: $(call ready,test) ## the API pages, from docstrings
	$(in_src) tools/docs.py

$(VENV)/bin/python:
	@$(BOOTSTRAP) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "ziggurat needs Python 3.10 or newer; name one: make BOOTSTRAP=python3.11"; exit 2; }
	$(BOOTSTRAP) -m venv $(VENV)

# MindSpore and MindCV, which nothing but the oracle needs, apart from all else: they ask for an older NumPy.
$(MINDSPORE_VENV)/.ready: tests/parity/mindcv_requirements.txt
	$(BOOTSTRAP) -m venv $(MINDSPORE_VENV)
	$(MINDSPORE_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# Packages are installed anew when pyproject.toml changes. The demo runs the package as it is installed, so there the
# code counts too; everything else runs the code in src.
$(VENV)/.ready-demo: $(shell find src -type f -not -path '*/__pycache__/*')
$(VENV)/.ready-%: pyproject.toml | $(VENV)/bin/python
	$(PYTHON) -m pip install --quiet --disable-pip-version-check '.[$*]'
	@touch $@
