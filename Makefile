# `make distill` and `make test` need git, make and a Python from 3.11 on, and set everything else up.
PYTHON ?= python3
VENV ?= .venv
ready := $(VENV)/.ready

.PHONY: distill test lint lock

distill: $(ready)
	$(VENV)/bin/momentax distill --data digits --output runs/digits

test: $(ready)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

lint: $(ready)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

# Every version for every Python at once; needs `pip install uv`.
lock:
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
		--no-header --no-annotate --upgrade --output-file requirements.lock

$(ready): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("needs Python >= 3.11; got %d.%d; do: make PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(VENV)/bin/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@
