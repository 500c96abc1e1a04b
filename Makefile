# make setup      a virtual environment in .venv with everything in requirements.txt
# make demo       setup, then train and evaluate a classifier on drawn images, without GPU or downloads
# make test       setup, then the tests
# make test-long  the same tests many more times over: kills, damage, mutants

VENV := .venv
PYTHON ?=

.PHONY: setup demo test test-long

setup: $(VENV)/installed

demo: setup
	$(VENV)/bin/python -m transfer_learning.run --dataset drawn_pills

test: setup
	$(VENV)/bin/python -m pytest -q -n 2 --dist loadfile

test-long: setup
	$(VENV)/bin/python -m pytest -q -m long

# TensorFlow has wheels for these versions of Python only; pip would say it with a page of text.
$(VENV)/installed: requirements.txt
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  if $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; \
	  then chosen=$$python; break; fi; \
	done; \
	if [ -z "$$chosen" ]; then \
	  echo "error: no Python 3.11, 3.12 or 3.13 with venv was found, and TensorFlow has packages for no other;" \
	    "install one (Debian: python3 python3-venv) or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; \
	  exit 2; \
	fi; \
	echo "Installing requirements.txt into $(VENV) with $$chosen ..."; \
	$$chosen -m venv $(VENV) && $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@
