# make demo    set up an environment and run the main job on built-in data
# make test    set up an environment and run the whole test suite
# make quick   the same, without the files of tests that take long: under two minutes, for every change
# All need Python 3.11 or newer and nothing else. PYTHON=python3.12 chooses another interpreter.
#
# make measure runs all tests and writes the list of slow files that make quick leaves out: tests/slow_files.txt.

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: demo test quick measure
.DELETE_ON_ERROR:

demo: $(VENV)/installed
	$(RUN) scripts/demo.py

test: $(VENV)/installed-test
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pytest

quick: $(VENV)/installed-test
	$(RUN) -m ruff check .
	$(RUN) -m pytest --quick

measure: $(VENV)/installed-test
	$(RUN) -m pytest --measure

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable '.[demo]'
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(RUN) -m pip install --quiet --editable '.[demo,test]'
	touch $@
