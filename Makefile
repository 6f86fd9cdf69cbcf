# `make demo` and `make test` start from a bare clone: each makes a virtual environment, installs, and runs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Each of the hundreds of processes that tests start would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

# Workers take whole files; the longest file is collected first (tests/conftest.py). More workers than cores took longer:
# each collects all tests and makes its own runs.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(min(6, os.cpu_count()))')
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# What other versions could break: maths, files, networks, processes, torchrun, the whole pipeline.
VERSIONS := tests/core tests/runtime tests/files tests/networks tests/data tests/runs tests/training tests/test_examples.py tests/test_pipeline.py

.PHONY: help demo demo-fashion recipes site test all-but-slow check check-slow oldest middle newest bench gpu gpu-report fuzz lint types man docs dist clean
help:
	@echo "make demo        set up, then the whole pipeline on real images (pictures in demo/)"
	@echo "make demo-fashion  set up, then the tutorial on 70,000 pictures of clothing: 20 to 40 minutes on two cores (in demo-fashion/)"
	@echo "make recipes     set up, then train, score and time the preset digits for the table in docs/presets.md"
	@echo "make site        the documentation as a site, in site/: open site/index.html, it needs no network"
	@echo "make test        set up, then the tests of five minutes, with the whole pipeline on real images"
	@echo "make check       lint, types and all tests but the slow ones: what CI runs; prints sizes at its end"
	@echo "make check-slow  the slow tests, then these three:"
	@echo "make oldest      tests with the oldest Python and packages that setup.cfg allows; PYTHON_OLDEST names that Python"
	@echo "make middle      the same tests with a torch between them"
	@echo "make newest      tests with the newest Python here and the newest packages; PYTHON_NEWEST names that Python"
	@echo "make fuzz        200 damaged files of every format through the commands that read them; FUZZ=\"200 400\" tries others"
	@echo "make bench       benchmarks, as ratios against named peers"
	@echo "make dist        what is published, in dist/: an sdist and a wheel, of the same bytes each time"
	@echo "make gpu         all that is to be known on a CUDA card, the most valuable first: OUT=gpu.json, BUDGET=540 seconds, ONLY=\"STEP …\";"
	@echo "                 DEVICE=cpu runs the same small"
	@echo "make gpu-report  the table of docs/gpu.md from reports of make gpu: FILES=\"a.json b.json\""

# Python compiles the files that it imports, about a third; pip would spend half a minute on all.
INSTALL := -m pip install --quiet --no-compile

define new_venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "elbo needs Python 3.11 or newer; set PYTHON=python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(@D)
endef

$(VENV)/.ready: setup.cfg pyproject.toml
	$(new_venv)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python $(INSTALL) --editable '.[test,dev]'
	@touch $@

# Without $(VENV), the demo installs only the packages that it runs.
DEMO := $(if $(wildcard $(VENV)/.ready),$(VENV),.venv-demo)
.venv-demo/.ready: setup.cfg
	$(new_venv)
	$(@D)/bin/python $(INSTALL) --editable . 'scikit-learn >= 1.4'
	@touch $@

demo: $(DEMO)/.ready
	PATH="$(CURDIR)/$(DEMO)/bin:$$PATH" sh examples/digits/demo.sh demo

# FASHION: the folder of the four files; docs/tutorial.md says where they are from.
FASHION ?= /usr/share/datasets/fashion-mnist
demo-fashion: $(VENV)/.ready
	PATH="$(CURDIR)/$(BIN):$$PATH" sh examples/fashion/demo.sh $(FASHION) demo-fashion
	$(BIN)/python examples/fashion/write_tutorial.py demo-fashion docs

# Each row of docs/recipes.json is measured from the start, so the folder is new each time.
recipes: $(VENV)/.ready
	rm -rf recipes && $(BIN)/python examples/digits/make_digits.py recipes/digits
	cd recipes && PATH="$(CURDIR)/$(BIN):$$PATH" && elbo prep digits/train digits.h5 --size 8 --channels 1 && \
	elbo prep digits/test test.h5 --size 8 --channels 1 && \
	python ../examples/digits/make_classifier.py digits.h5 test.h5 classifier.pt2 && \
	python ../examples/recipes.py digits digits.h5 test.h5 classifier.pt2

site: $(VENV)/.ready
	$(BIN)/python -m docs.sphinx.build site

test: $(VENV)/.ready
	$(PYTEST) -m 'not long and not slow'

# Types take a minute and a half on one core, which the tests leave free now and then.
check: $(VENV)/.ready
	$(MAKE) --jobs --output-sync=line lint types all-but-slow
	@$(BIN)/python tools/size.py

all-but-slow: $(VENV)/.ready
	$(PYTEST)

check-slow: $(VENV)/.ready
	$(BIN)/python -m pytest -m slow
	$(MAKE) oldest
	$(MAKE) middle
	$(MAKE) newest

# Each in an environment of its own, by the same tests. tools/bounds.py knows what is oldest and newest.
PYTHON_OLDEST ?= $(shell $(PYTHON) tools/bounds.py --oldest)
PYTHON_NEWEST ?= $(shell $(PYTHON) tools/bounds.py --newest)
.venv-oldest/.ready: setup.cfg pyproject.toml tools/bounds.py
	$(PYTHON_OLDEST) -m venv --clear .venv-oldest
	$(PYTHON_OLDEST) tools/bounds.py > .venv-oldest/constraints.txt
	.venv-oldest/bin/python -m pip install --quiet --upgrade pip
	.venv-oldest/bin/python -m pip install --quiet --constraint .venv-oldest/constraints.txt --editable '.[test]'
	@touch $@

# Torch has had faults that neither its oldest nor its newest has.
MIDDLE := torch==2.10.*
.venv-middle/.ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv --clear .venv-middle
	.venv-middle/bin/python -m pip install --quiet --upgrade pip
	.venv-middle/bin/python -m pip install --quiet --editable '.[test]' '$(MIDDLE)'
	@touch $@

.venv-newest/.ready: setup.cfg pyproject.toml
	$(PYTHON_NEWEST) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade pip
	.venv-newest/bin/python -m pip install --quiet --upgrade --upgrade-strategy eager --editable '.[test]'
	@touch $@

oldest middle newest: %: .venv-%/.ready
	.venv-$@/bin/python tools/bounds.py --installed
	$(PYTEST:$(BIN)%=.venv-$@/bin%) $(VERSIONS)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy

# The number of seeds for each file, or the first of them and the end.
FUZZ ?= 200
fuzz: $(VENV)/.ready
	FUZZ="$(FUZZ)" $(BIN)/python -m pytest -n $(WORKERS) tests/test_damaged_files.py

man: $(VENV)/.ready
	$(BIN)/python man/build.py

docs: $(VENV)/.ready
	$(BIN)/python tools/odd_inputs.py > docs/odd-images.md.new
	mv docs/odd-images.md.new docs/odd-images.md
	$(BIN)/python tools/fill_page.py docs/presets.md > docs/presets.md.new
	mv docs/presets.md.new docs/presets.md
	$(BIN)/python tools/formats.py docs/datasets.md > docs/datasets.md.new
	mv docs/datasets.md.new docs/datasets.md
	$(BIN)/python tools/formats.py man/elbo-formats.5 > man/elbo-formats.5.new
	mv man/elbo-formats.5.new man/elbo-formats.5

bench: $(VENV)/.ready
	$(BIN)/python tools/bench/run.py

# Variables of these names that the environment has mean something else: `make gpu OUT=card.json BUDGET=600 ONLY='"host waits"'`.
DEVICE ?= cuda
OUT = gpu.json
BUDGET = 540
ONLY =
FILES =
gpu: $(VENV)/.ready
	$(BIN)/python tools/gpu.py --device $(DEVICE) --out $(OUT) --budget $(BUDGET) $(ONLY)

gpu-report: $(VENV)/.ready
	$(BIN)/python tools/gpu.py --report $(FILES)

dist: $(VENV)/.ready
	rm -rf dist
	$(BIN)/python tools/release.py dist dist

clean:
	rm -rf $(VENV) .venv-demo .venv-oldest .venv-middle .venv-newest build dist demo demo-fashion recipes site *.egg-info
