# The study in one command: `make reproduce`. `make` alone lists what there is.

VENV   := .venv
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.clipvip-setup
# Beside .venv, so that it also outlives a making of .venv that was cut short
RUNNING := .venv-setup-running
PROFILE ?= mini
SEEDS   ?= 0
MINUTES ?= 20
# A Python >= 3.11 of your choice: make setup PYTHON=/path/to/python
PYTHON  ?=

# cpu: PyTorch without CUDA, which saves several GB. uv knows the index that serves it
TORCH   ?=

# What an installer says, without a line a package
BRIEF := grep --line-buffered -vE '^ [-+~] |^(Looking|Collecting|Requirement|Installing|Success)| kB|[.]metadata'
# What the workers, the kernels and the pages of the study import, directly or through these
IMPORTED := clipvip_lib.captions.captioner, clipvip_lib.statistics.language_gap, clipvip_lib.statistics.probes, clipvip_lib.training, \
  clipvip_lib.study.steps, clipvip_lib.study.notebook, clipvip_lib.study.figures, clipvip_lib.workshop.pages, \
  papermill, nbconvert, ipykernel.kernelapp, matplotlib.pyplot, pandas, sklearn.cluster, sklearn.decomposition

.DEFAULT_GOAL := help
.PHONY: help setup reproduce smoke test equality smoke-results registration evidence condition answer faults soak docs lab lint format clean distclean

help: ## list these targets
	@awk -F ':.*##@? ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "SEEDS=0,1,2 and PROFILE=smoke (mini, mini-gpu) choose what reproduce runs. To work on the code and the reference:"
	@awk -F ':.*##@? ' '/^[a-z-]+:.*##@ / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Of what is installed, only what the study imports is compiled, by importing it once: else its processes would do
# it side by side at their start. The stamp holds a checksum of the files that decide what is installed, and is
# written last. A set-up that was interrupted leaves its "running" mark, and the next one starts afresh: half a
# package is worse than none. The mark says "installed" once it is: a pipe to grep hides how the installer ended.
setup: ## make .venv from requirements.lock, if it changed (TORCH=cpu: PyTorch without CUDA)
	@case "$(TORCH)" in ""|cpu) ;; *) echo "setup: expected TORCH=cpu or none, got $(TORCH)" >&2; exit 1;; esac; \
	sum=$$(cat requirements.lock pyproject.toml | cksum); \
	if [ -x $(PY) ] && [ "$$(cat $(STAMP) 2>/dev/null)" = "$$sum" ]; then \
	  [ -z "$(TORCH)" ] || echo "setup: $(VENV) is made; to make it again with TORCH=$(TORCH), remove it first"; \
	  exit 0; \
	fi; \
	set -e; \
	if [ -e $(RUNNING) ]; then \
	  echo "setup: the last one was interrupted, starting afresh"; rm -rf $(VENV); \
	fi; \
	: > $(RUNNING); \
	began=$$(date +%s); \
	took() { now=$$(date +%s); echo "setup: $$1 took $$((now - last)) s"; last=$$now; }; \
	if ! $(PY) -c "import sys" 2>/dev/null; then \
	  python=""; \
	  for each in $(PYTHON) python3 python3.13 python3.12 python3.11 python; do \
	    if $$each -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	      python=$$each; break; \
	    fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    rm -f $(RUNNING); \
	    echo "setup: no Python 3.11 or newer found; install one, or name it: make setup PYTHON=/path/to/python" >&2; \
	    exit 1; \
	  fi; \
	  rm -rf $(VENV); \
	  echo "setup: making $(VENV) with $$($$python --version)"; \
	  if command -v uv >/dev/null 2>&1; then uv venv --quiet --python "$$(command -v $$python)" $(VENV); \
	  else \
	    $$python -m venv $(VENV) || { rm -rf $(VENV) $(RUNNING); \
	      echo "setup: $$python cannot make environments; install its venv package (python3-venv) or uv" >&2; \
	      exit 1; }; \
	  fi; \
	fi; \
	rm -f $(STAMP); \
	uv=$$(command -v uv || true); \
	if [ -z "$$uv" ] && [ ! -x $(VENV)/bin/uv ]; then \
	  echo "setup: installing uv into $(VENV)"; \
	  $(PY) -m pip install --quiet --disable-pip-version-check uv \
	    || echo "setup: uv could not be installed, going on with pip"; \
	fi; \
	if [ -z "$$uv" ] && [ -x $(VENV)/bin/uv ]; then uv=$(VENV)/bin/uv; fi; \
	if [ -n "$$uv" ]; then install="$$uv pip install --python $(PY)"; \
	else install="$(PY) -m pip install --disable-pip-version-check --no-compile --progress-bar off"; fi; \
	last=$$(date +%s); \
	failed() { rm -f $(RUNNING); echo "setup: failed; correct what it says and run make setup again" >&2; exit 1; }; \
	lock=requirements.lock; \
	if [ "$(TORCH)" = cpu ]; then \
	  [ -n "$$uv" ] || { echo "setup: TORCH=cpu needs uv; install it" >&2; failed; }; \
	  lock=$(VENV)/cpu.lock; export UV_TORCH_BACKEND=cpu; \
	  grep -vE '^(cuda|nvidia|triton)' requirements.lock > $$lock; \
	fi; \
	echo "setup: installing the packages of $$lock"; \
	[ -n "$(TORCH)" ] || echo "setup: on Linux most of that is PyTorch's CUDA libraries, several GB (TORCH=cpu: without)"; \
	{ $$install -r $$lock 2>&1 && echo installed > $(RUNNING); } | $(BRIEF) >&2 || true; \
	[ -s $(RUNNING) ] || failed; took installing; \
	echo "setup: installing this project, editable"; \
	$$install --quiet --no-deps --no-build-isolation -e . || failed; \
	echo "setup: compiling what the study imports, by importing it once"; \
	PYTHONDONTWRITEBYTECODE= $(PY) -c "import $(IMPORTED)" || failed; took compiling; \
	rm -f $(RUNNING); echo "$$sum" > $(STAMP); \
	echo "setup: done in $$((now - began)) s; on disk: $$(du -sh $(VENV))"

reproduce: setup ## the study at mini size: 22 minutes with bfloat16, 27 minutes without, 1 hour 15 minutes on cores of 2017
	@$(VENV)/bin/clipvip reproduce --profile $(PROFILE) --seeds $(SEEDS)

smoke: setup ## every notebook in two minutes: pages in reports/smoke/
	@$(VENV)/bin/clipvip reproduce --profile smoke --seeds $(SEEDS)

test: setup ## the tests, the notebooks at smoke size included (ALL=1: the thorough ones too, ten minutes more)
	@$(PY) -m pytest $(if $(ALL),,-m "not thorough")

EQUALITY := goldens proxy_attention clip_vip checkpoints ofa beam
equality: setup ##@ compare our models with the authors': reports/reference/equality.json
	@$(PY) -m pytest -v $(EQUALITY:%=tests/test_%.py) --write-equality reports/reference/equality.json

smoke-results: setup ##@ keep a smoke run for make test to compare with (after raising a stage's version)
	@$(PY) -m pytest -n 0 tests/test_smoke_results.py --write-smoke-results

registration: setup ##@ fix what the next reference run will be: registration.json (commit it before that run)
	@$(PY) -m clipvip_lib.study.jobs registration

evidence: setup ##@ train what the statements need, add it to the evidence (SEEDS=0,1; FILE=evidence-NAME.npz)
	@$(PY) -m clipvip_lib.study.jobs evidence $(PROFILE) $(SEEDS) $(FILE)

condition: setup ##@ the same for five statements under another condition (NAME=no-order)
	@$(PY) -m clipvip_lib.study.jobs condition $(PROFILE) $(NAME)

answer: setup ##@ judge that evidence again: verdicts, figure, README's answer
	@$(PY) -m clipvip_lib.study.jobs answer

faults: setup ##@ write docs/faults.md from the marks of the tests
	@$(PY) tests/faults.py

soak: setup ##@ read, search and kill for about MINUTES=20; writes docs/soak.md
	@$(PY) tests/soak.py $(MINUTES)

docs: setup ## build the documentation as a site that opens from the disk: build/site/index.html
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet
	@echo "docs: build/site/index.html"

lab: setup ## open the notebooks in JupyterLab, saved without outputs (LAB_ARGS=.. for more options)
	@$(VENV)/bin/jupyter lab --notebook-dir=notebooks --FileContentsManager.pre_save_hook=clipvip_lib.workshop.lab.scrub \
	  --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate --LabApp.app_settings_dir=clipvip_lib/workshop/templates/jupyterlab $(LAB_ARGS) $(if $(filter 0,$(shell id -u)),--allow-root) notebooks/00_start_here.ipynb

lint: setup ##@ check format and style of code and notebooks
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .

format: setup ##@ put code and notebooks into the project's format
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

clean: ## remove pages and tools' leftovers; keeps .clipvip/ (results of training) and .venv/
	@rm -rf .pytest_cache .ruff_cache .hypothesis build
	@find clipvip_lib tests notebooks -name __pycache__ -prune -exec rm -rf {} +
	@find notebooks -name .ipynb_checkpoints -prune -exec rm -rf {} +
	@find reports -mindepth 1 -maxdepth 1 ! -name README.md ! -name reference -exec rm -rf {} +
	@echo "clean: removed the pages in reports/ and the tools' caches; kept .clipvip/ and .venv/"

distclean: clean ## remove also .clipvip/ (every result of training) and .venv/
	@rm -rf .clipvip $(VENV) $(RUNNING)
	@echo "distclean: removed .clipvip/ (every result of training) and .venv/ too"
