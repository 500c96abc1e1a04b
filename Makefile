# make setup      a virtual environment in .venv with requirements.lock and this package
# make demo       setup, then train and evaluate a classifier on drawn images, without GPU or downloads
# make check      setup, then ruff, mypy and the tests of the documentation
# make fast       setup, then the tests that take less than two minutes together
# make test       setup, then all tests but the long ones and those of the documentation, which make check runs
# make test-long  the same tests many more times over: kills, damage, mutated images
# make test-browser  the pages of server and leaderboard, in Chromium (Debian: chromium)
# make test-serve RUN=RUN_DIR  10,000 hostile and 1,000 good requests, mixed, to a server of that run
# make lock       requirements.lock from requirements.txt: every package with the hashes of its files
# make audit      looks up known vulnerabilities of the locked packages, in a service on the internet

VENV := .venv
TOOLS := .venv/tools
PYTHON ?=
FAST := tests/cli tests/storage tests/machine tests/evaluation $(wildcard tests/datasets/test_*.py) \
  $(patsubst %,tests/test_%.py,config containers layers list loaders main requirements)

.PHONY: setup demo check fast test test-long test-browser test-serve lock audit

setup: $(VENV)/installed

demo: setup
	$(VENV)/bin/python -m transfer_learning run --dataset drawn_pills

check: setup
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	@echo "mypy and the tests of the documentation, at the same time:"
	@$(VENV)/bin/mypy & mypy=$$!; $(VENV)/bin/python -m pytest -q tests/test_docs.py; docs=$$?; wait $$mypy && exit $$docs

fast: setup
	$(VENV)/bin/python -m pytest -q -n 2 $(FAST)

test: setup
	$(VENV)/bin/python -m pytest -q -n 2 --no-loadscope-reorder --ignore tests/test_docs.py

test-long: setup
	$(VENV)/bin/python -m pytest -q -m long

test-browser: setup
	$(VENV)/bin/python -m pytest -q -m browser

test-serve: setup
	$(VENV)/bin/python -m tests.support.attack $(RUN)

# For every platform and each Python that TensorFlow has wheels for; locked versions stay unless they have to change.
lock: $(TOOLS)/installed
	$(TOOLS)/bin/uv pip compile --quiet --no-config --universal --python-version 3.11 --generate-hashes --no-annotate \
	  --custom-compile-command "make lock" --output-file requirements.lock requirements.txt

# --strict: an unknown package or an unreachable service is a failure.
audit: $(TOOLS)/installed
	$(TOOLS)/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements.lock

$(VENV)/installed: requirements.lock pyproject.toml
	@$(FIND_PYTHON); \
	echo "Installing requirements.lock into $(VENV) with $$chosen ..."; \
	$$chosen -m venv $(VENV) && $(VENV)/bin/python -m pip install $(QUIETLY) --require-hashes --requirement requirements.lock && \
	$(VENV)/bin/python -m pip install $(QUIETLY) --no-deps --no-build-isolation --editable .
	@touch $@

$(TOOLS)/installed: requirements-tools.txt
	@$(FIND_PYTHON); \
	$$chosen -m venv $(TOOLS) && $(TOOLS)/bin/python -m pip install $(QUIETLY) --requirement requirements-tools.txt
	@touch $@

# --no-compile: Python compiles what is imported at its first import, and most of it never is. It keeps the result
# whatever the environment says: without, each process would compile TensorFlow again, for 6 s.
unexport PYTHONDONTWRITEBYTECODE
QUIETLY := --quiet --disable-pip-version-check --no-compile

# TensorFlow has wheels for these versions of Python only.
define FIND_PYTHON
for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
  if $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; \
  then chosen=$$python; break; fi; \
done; \
if [ -z "$$chosen" ]; then \
  echo "error: no Python 3.11, 3.12 or 3.13 with venv was found, and TensorFlow has packages for no other;" \
    "install one (Debian: python3 python3-venv) or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; \
  exit 2; \
fi
endef
