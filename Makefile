# make demo   everything once on synthetic studies, in minutes
# make test   the quick tests            make test-slow   the others
# make battery   all attacks on the package, for hours; the tests run a slice of each
# make lint   formatting, lint, types    make check       these three
# make docs   the documentation in site/, with the guide run: open site/index.html
#
# Needs Python 3.11 or newer, pip and make; the first target makes .venv and installs into it.

PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.installed
PYTEST := $(VENV)/bin/python -m pytest -q
# a process a core, at most four, each on one core; a file's tests share what they set up
BESIDE := -n auto --maxprocesses 4 --dist loadfile

.PHONY: demo test test-slow battery docs lint check clean

demo: $(READY)
	rm -rf build/demo
	$(VENV)/bin/ich-seq demo --out build/demo

test: $(READY)
	OMP_NUM_THREADS=1 $(PYTEST) $(BESIDE) -m "not slow"

test-slow: $(READY)
	OMP_NUM_THREADS=1 $(PYTEST) $(BESIDE) -m slow

battery: $(READY)
	$(VENV)/bin/python tools/battery.py build/battery

docs: build/guide/guide.ipynb
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

# The guide is run anew when it, or the package, is another.
build/guide/guide.ipynb: $(READY) docs/guide.py tools/run_guide.py $(wildcard ich_seq/*.py)
	$(VENV)/bin/python tools/run_guide.py

lint: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

check: lint test test-slow

# A Python without the venv module (Debian splits it off) gets virtualenv from pip instead.
$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	test -x $(VENV)/bin/pip || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV) \
		&& $(PYTHON) -m pip install --quiet --target build/virtualenv virtualenv \
		&& PYTHONPATH=build/virtualenv $(PYTHON) -m virtualenv --quiet $(VENV); }
	$(VENV)/bin/pip install --quiet --editable '.[dev,docs,jpeg,onnx,openvino,pacs,tensorboard]'
	touch $(READY)

clean:
	rm -rf $(VENV) build site
