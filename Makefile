# Every target works on a fresh clone: the first one called installs .venv. Needs Python 3.11 or later.
PYTHON ?= python3

.PHONY: quickstart stages experiments test test-slurm test-image test-captions test-page lint types docs format wheels clean

# Train a model of handwritten digits and measure it; called again, it resumes.
quickstart: .venv/installed data/digits/words.tiktoken
	.venv/bin/python -m oneflow_dist.train configs/quickstart.toml
	.venv/bin/python tools/digits/evaluate.py runs/quickstart

# Four stages of training, each from the weights of the one before, measured and drawn on one page: docs/stages.md. Another seed:
# make stages SEED=1 STAGES=runs/stages-1
SEED ?= 0
STAGES ?= runs/stages
stages: .venv/installed data/stages/words.tiktoken
	.venv/bin/python -m oneflow_dist.train configs/stages/a_text.toml run.folder=$(STAGES)/a_text run.seed=$(SEED)
	.venv/bin/python -m oneflow_dist.train configs/stages/b_images.toml run.folder=$(STAGES)/b_images run.seed=$(SEED) \
	    init.path=$(STAGES)/a_text
	.venv/bin/python -m oneflow_dist.train configs/stages/c_mixed.toml run.folder=$(STAGES)/c_mixed run.seed=$(SEED) \
	    init.path=$(STAGES)/b_images
	.venv/bin/python -m oneflow_dist.train configs/stages/d_instruct.toml run.folder=$(STAGES)/d_instruct run.seed=$(SEED) \
	    init.path=$(STAGES)/c_mixed
	.venv/bin/python tools/stages/report.py $(STAGES)

# Every experiment of docs/experiments anew, with one seed, in less than an hour of two cores; stopped, the same command goes on.
# It tells which numbers lie outside the ranges of those that are committed. Three seeds: make experiments SEEDS=3
SEEDS ?= 1
experiments: .venv/installed
	.venv/bin/python tools/experiment.py all --seeds $(SEEDS) --output runs/experiments/pages --against docs/experiments

test: .venv/installed
	.venv/bin/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal

# A run on a real SLURM of eight nodes on this machine, and everything that ends it, in three or four minutes; needs root, slurm-wlm and munge.
test-slurm: .venv/installed data/digits/words.tiktoken
	.venv/bin/python tests/torture/slurm.py $$(mktemp -d)/slurm $(if $(EVENTS),--only $(EVENTS))

# Builds the image twice and runs it, in a quarter of an hour, as root; docs/containers.md.
test-image: .venv/installed
	.venv/bin/python tests/torture/image.py /var/tmp/oneflow-image $(addprefix --torch-wheel ,$(TORCH_WHEEL))

# Figures of captions beside those of the package that COCO's tables come from, METEOR's jar included, in two minutes; needs Java.
test-captions: .venv/installed
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv/captions pycocoevalcap==1.2
	PYTHONPATH=.venv/captions .venv/bin/python tests/torture/captions.py

# The page of `oneflow serve` in a real browser, then 200 requests that nobody should send: three minutes, after those of the
# quickstart's training where it has not been trained; needs Debian's chromium.
test-page: .venv/installed data/digits/words.tiktoken
	.venv/bin/python -m oneflow_dist.train configs/quickstart.toml
	.venv/bin/python tests/torture/page.py runs/quickstart
	.venv/bin/python tests/torture/hostile.py runs/quickstart

lint: .venv/installed
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/hadolint Dockerfile
	.venv/bin/shellcheck .ci/run $(wildcard launch/*.sh launch/*.sbatch)

types: .venv/installed
	.venv/bin/mypy

# The documentation as a site, build/site/index.html, which can be opened as a file; docs/decisions/0033.
docs: export NO_MKDOCS_2_WARNING = 1
docs: .venv/installed
	.venv/bin/python -m mkdocs build --strict

format: .venv/installed
	.venv/bin/ruff check --fix
	.venv/bin/ruff format

# What a machine without a network lacks to measure the peers, for its Python 3.12: docs/gpu.md. 1.6 MB together.
wheels:
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --dest wheels --no-deps --only-binary=:all: \
	    --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
	    torchtitan==0.2.2 liger-kernel==0.8.5 tyro==1.0.17 docstring_parser==0.18.0 typeguard==4.6.0 braceexpand==0.1.7

# Data and runs are the user's: they stay.
clean:
	rm -rf .venv build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './runs/*' -not -path './data/*' -prune -exec rm -rf {} +

# The vocabulary is written last, so it stands for all of data/digits.
data/digits/words.tiktoken: | .venv/installed
	.venv/bin/python tools/digits/make.py data/digits

# As above; it reads data/openstax, data/emoji and data/nlvr.
data/stages/words.tiktoken: | .venv/installed
	.venv/bin/python tools/stages/make.py data/stages

# torch comes first so that the rest is resolved against the build for this machine; see requirements.lock. Beside all
# that lies the oldest supported triton, for tests alone; images have no lock of it.
.venv/installed: requirements.lock pyproject.toml $(wildcard requirements-oldest-triton.lock)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo 'error: $(PYTHON) is not Python 3.11 or later; call make PYTHON=/path/to/python3.11' >&2; exit 1; }
	@echo 'installing requirements.lock into .venv, a minute or two (longer where torch brings CUDA along)'
	@$(PYTHON) -m venv .venv
	@sed 's/ --hash=.*//' requirements.lock >.venv/versions.txt
	@grep -Ev '^(cuda|nvidia)-' requirements.lock >.venv/requirements.txt
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check -c .venv/versions.txt torch
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r .venv/requirements.txt
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target .venv/triton-3.6 \
	    -r requirements-oldest-triton.lock
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
