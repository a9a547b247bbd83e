# `make distill` and `make test` need git, make and a Python from 3.11 on, and set everything else up.
PYTHON ?= python3
VENV ?= .venv
ready := $(VENV)/.ready
ready_to_develop := $(VENV)/.ready-to-develop
pip := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: distill test lint lock

distill: $(ready)
	$(VENV)/bin/momentax distill --data digits --output runs/digits

test: $(ready_to_develop)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

lint: $(ready_to_develop)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

# Every version for every Python at once; needs `pip install uv`. What the command line needs, at the versions of all.
compile := uv pip compile pyproject.toml --group build --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate --quiet
lock:
	$(compile) --all-extras --upgrade --output-file requirements-dev.lock
	$(compile) --extra recipes --constraints requirements-dev.lock --upgrade --output-file requirements.lock

$(ready): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("needs Python >= 3.11; got %d.%d; run: make PYTHON=python3.12" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV)
	@echo "installing momentax and the packages of its command line into $(VENV): a minute"
	@$(pip) --require-hashes --requirement requirements.lock
	@$(pip) --no-build-isolation --no-deps --editable .
	@touch $@

$(ready_to_develop): requirements-dev.lock $(ready)
	@echo "installing what tests and lint need into $(VENV): a minute"
	@$(pip) --require-hashes --requirement requirements-dev.lock
	@touch $@
