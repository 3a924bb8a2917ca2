# `make` lists what there is. Everything is installed into .venv, once, and again when settings.ini changes.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3,10)<=sys.version_info[:2]<=(3,13))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN  := $(VENV)/bin
USER_STAMP := $(VENV)/.installed
DEV_STAMP  := $(VENV)/.installed-dev
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq
# threads that wait must not spin: that costs most of a busy machine
export OMP_WAIT_POLICY ?= PASSIVE
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help demo test notebooks studies docs linkcheck bench fuzz wheel release clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(USER_STAMP) ## the whole chain on the shipped sample: pack, train, evaluate, demo/report.html
	jetbook demo -o demo

test: $(DEV_STAMP) ## everything a change must pass (ARGS='--only notebooks,pytest' for a part)
	@python tests/run_all.py $(ARGS)

notebooks: $(DEV_STAMP) ## export, execute in place and clean (NB='02_conv_ae' and FLAGS=slow narrow or widen it)
	ruff format -q nbs
	nbdev_export
	python tests/runnb.py $(NB) --flags '$(FLAGS)'

studies: $(DEV_STAMP) ## what we found out: long trainings, which resume, and the tables of the results (NB=taggers for one)
	python tests/runnb.py $(or $(NB),--studies) --flags slow

docs: $(DEV_STAMP) ## the site in _docs/ (warnings are errors, every link is checked) and README.md
	docs/mathjax.sh
	python docs/nbsrc.py
	rm -rf _docs
	sphinx-build -n -W --keep-going -q -j auto -b html -c docs docs/_nbs _docs
	python docs/links.py _docs
	python docs/readme.py
	@echo "open _docs/index.html"

linkcheck: $(DEV_STAMP) ## do the links that lead out of the site answer? (needs the network)
	python docs/nbsrc.py
	sphinx-build -q -b linkcheck -c docs docs/_nbs _docs/linkcheck

fuzz: $(DEV_STAMP) ## 10,000 damaged files and 1,000 kills, an hour; goes on where it was stopped (ARGS='--files 500 --kills 20 --seed 1')
	PYTHONPATH=tests:. OMP_NUM_THREADS=1 python -m fuzz $(ARGS)

bench: $(DEV_STAMP) ## timed comparisons -> benchmarks/RESULTS.md
	python benchmarks/run.py $(ARGS)

wheel: $(DEV_STAMP) ## dist/*.whl and dist/*.tar.gz, checked
	rm -rf dist build
	python -m build --quiet
	twine check --strict dist/*

release: ## publish the version of settings.ini: checks, PyPI, tag (UPLOAD=no stops before anything leaves this machine)
	@v=$$(sed -n 's/^version *= *//p' settings.ini); \
	git diff --quiet HEAD || { echo "there are changes that are not committed: git status"; exit 1; }; \
	grep -qE "^## $$v, 20[0-9]{2}-[0-9]{2}-[0-9]{2}$$" CHANGELOG.md || { echo "CHANGELOG.md has no heading '## $$v, YYYY-MM-DD'"; exit 1; }; \
	! git rev-parse -q --verify "refs/tags/v$$v" >/dev/null || { echo "v$$v was released already: raise version in settings.ini"; exit 1; }; \
	$(MAKE) test && $(MAKE) test ARGS='--only newest' && $(MAKE) wheel && \
	if [ "$(UPLOAD)" = no ]; then echo "v$$v is ready in dist/; nothing was uploaded"; else \
	twine upload dist/* && git tag -a "v$$v" -m "jetbook $$v" && git push origin "v$$v"; fi

clean: ## all that make made, but .venv
	rm -rf build dist _docs _proc demo docs/_nbs docs/jupyter_execute .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(BIN)/python:
	@[ -n "$(PYTHON)" ] || { echo "jetbook needs Python 3.10 to 3.13 and found none; name one: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip

$(USER_STAMP): settings.ini setup.py | $(BIN)/python
	@echo "installing into $(VENV): some minutes and 7 GB of disk, most of it PyTorch"
	@$(PIP) -e '.[compress]'
	@touch $@

$(DEV_STAMP): settings.ini setup.py | $(BIN)/python
	@echo "installing into $(VENV): some minutes and 7 GB of disk, most of it PyTorch"
	@$(PIP) -e '.[dev,docs,sim,particles]'
	@touch $@ $(USER_STAMP)
