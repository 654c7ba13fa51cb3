# make reproduce   every figure and table of a preset: PRESET=mini (default), PRESET=smoke, ...
# make report      the same, then data/runs/PRESET/report.html: one file with all of it
# make test        the tests, two at a time; ARGS="tests/fuse -x -n 0" for some of them
# make attack      kills, full disks and damaged files at length; the figures go to tests/README.md
# make test-browser  JupyterLab in a headless Chromium; skipped, with a reason, where there is none
# make screenshots  the same, and what is on the screen goes to figures/notebooks
# make lint        style, which room imports which, dependencies, names that only tests use
# make pages       the pages that show the committed figures and results, and README's table
# make lab         JupyterLab on the notebooks; ARGS=--no-browser, say
# make lock        remake requirements.lock from the bounds in pyproject.toml
#
# Each installs requirements.lock in .venv first, if that has not happened yet.

PRESET ?= mini
CORES ?= all
PYTHON ?= $(shell command -v python3.11 || command -v python3)

# All paths are relative: the folder's own path may have spaces, which make cannot handle in targets.
RUN := .venv/bin/python -m
PIP := .venv/bin/python -m pip --disable-pip-version-check --no-input
READY := .venv/ready

# An environment does not survive a move or a copy to another folder: it says where it was made.
ifneq "$(shell cat $(READY) 2>/dev/null)" "$(CURDIR)"
.PHONY: $(READY)
endif

.PHONY: reproduce report test attack test-browser screenshots lint pages lab lock
.DEFAULT_GOAL := reproduce

reproduce: $(READY)
	$(RUN) codiemb_lib reproduce --preset "$(PRESET)" --cores "$(CORES)"

report: reproduce
	$(RUN) codiemb_lib report --preset "$(PRESET)"

# Two workers, each on a core of its own: more threads would wait for each other.
test: export OMP_NUM_THREADS = 1
test: $(READY)
	$(RUN) pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

attack: export OMP_NUM_THREADS = 1
attack: $(READY)
	$(RUN) tests.attack $(ARGS)

test-browser: $(READY)
	$(RUN) pytest tests/app/test_browser.py -rs $(ARGS)

screenshots: export CODIEMB_SCREENSHOTS = figures/notebooks
screenshots: test-browser

lint: $(READY)
	$(RUN) ruff check
	$(RUN) ruff format --check
	.venv/bin/lint-imports
	.venv/bin/deptry .
	rm -rf .venv/notebooks
	$(RUN) nbconvert --log-level ERROR --to python --output-dir .venv/notebooks notebooks/*.ipynb
	.venv/bin/vulture codiemb_lib notebooks/classroom figures speed $(wildcard data/build) .venv/notebooks

pages: $(READY)
	.venv/bin/python figures/pages.py

lab: $(READY)
	$(RUN) jupyterlab notebooks $(ARGS)

$(READY): requirements.lock requirements-torch.lock pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo 'expected Python 3.11, found "$(PYTHON)", which is another. Name one: make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@if test "$$(cat $(READY) 2>/dev/null)" != '$(CURDIR)'; then "$(PYTHON)" -m venv --clear .venv; fi
	@rm -f $(READY)
	@echo 'installing requirements.lock in .venv: a few minutes'
	@$(PIP) install -qq --no-deps --require-hashes --requirement requirements.lock
	@$(PIP) install -qq --requirement requirements-torch.lock
	@$(PIP) install -qq --no-deps --no-build-isolation --editable .
	@printf '%s' '$(CURDIR)' > $(READY)

lock:
	"$(PYTHON)" -m venv --clear .venv-lock
	.venv-lock/bin/python -m pip install --quiet --requirement requirements-torch.lock uv '.[dev]'
	sed '/^[^#]/d' requirements.lock > .venv-lock/lock
	.venv-lock/bin/python -m pip freeze --all $(patsubst %,--exclude %,codiemb_lib pip torch uv) > .venv-lock/pins
	.venv-lock/bin/uv pip compile --quiet --no-deps --generate-hashes --no-header --no-annotate .venv-lock/pins >> .venv-lock/lock
	mv .venv-lock/lock requirements.lock
	rm -rf .venv-lock build
