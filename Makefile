# Needs only make, git and a Python of 3.10 or newer with its venv module. `make help` lists the targets.
#
# PYTHON          the interpreter the environment is made of (default: the first of python3, python3.13 ... python3.10 that fits)
# VENV            where the environment lies (default .venv)
# TORCH_PIP_ARGS  pip arguments that choose a build of PyTorch: what pytorch.org's install page prints after
#                 `pip3 install torch`, for example TORCH_PIP_ARGS="--index-url ADDRESS" make demo. Needed once.
# JOBS            test processes (default 2)
# MMH_SHARED      folder of the development data (default ../shared), for test-real and the benchmarks

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

PYTHON ?=
VENV ?= .venv
JOBS ?= 2
TORCH_PIP_ARGS ?=
CONSTRAINTS := constraints.txt
MMH_SHARED ?= $(abspath ../shared)
export MMH_SHARED
export PIP_DISABLE_PIP_VERSION_CHECK = 1

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q -c $(CONSTRAINTS)
METADATA := setup.cfg pyproject.toml $(CONSTRAINTS)

.PHONY: help demo test test-slow test-long test-real cluster-test kill-test container-test image lint types validate descriptor sample picture \
	benchmark-registration benchmark-brain benchmark-time benchmark-methods benchmark-real benchmark-real-multisite \
	benchmark-travelling benchmark-parts benchmark-diffusion benchmark-training-data benchmark-paper \
	train-light train-looks train-diffusion train-encoder benchmark-target benchmark-looks benchmark-style benchmark-group benchmark-evaluation evaluate-sample \
	evaluate-study \
	benchmark-qc benchmark-container browser-test env env-test torch clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*##  */\1|/p' Makefile | awk -F'|' '{ printf "  %-24s %s\n", $$1, $$2 }'

demo: env  ## environment, and the app on data/ds-sample
	$(BIN)/mmh data/ds-sample demo participant group -w work
	@echo
	@echo "Done. Look at:"
	@for page in demo/group_*.html demo/sub-*.html; do echo "  $$page"; done
	@echo "  demo/sub-*/.../*_desc-harmonized_T?w.nii.gz       the harmonized images, on each input's own grid"
	@echo "  demo/participants.tsv, demo/logs/                 what was done to whom, settings, provenance"
	@echo "Your own data: $(BIN)/mmh BIDS_DIR OUT_DIR participant -w WORK_DIR   ($(BIN)/mmh --help)"

test: env-test  ## environment for the tests, unit tests and doctests
	$(BIN)/python -m pytest -q -n $(JOBS)

test-slow: env-test  ## the longer tests
	$(BIN)/python -m pytest -q -n $(JOBS) -m slow

test-long: env-test  ## those that take minutes: the mirror of the sample dataset, calls killed at some places; not in CI
	$(BIN)/python -m pytest -q -n $(JOBS) -m long

test-real: env-test  ## the longer tests that need the data in $MMH_SHARED
	@test -d "$(MMH_SHARED)/data" || { echo "error: no data under $(MMH_SHARED): set MMH_SHARED" >&2; exit 1; }
	$(BIN)/python -m pytest -q -n $(JOBS) -m slow -k real

cluster-test: env-test  ## a real Slurm: a study as an array, killed and requeued tasks, eight tasks at once; a training; needs sbatch; a quarter of an hour
	@command -v sbatch >/dev/null || { echo "error: no sbatch: run this where Slurm is" >&2; exit 1; }
	$(BIN)/python -m pytest -q -m cluster

kill-test: env-test  ## kill a call at twenty places and give it again: the same bytes
	MMH_KILLS=20 $(BIN)/python -m pytest -q -s -m "slow or long" tests/cli/test_killed.py

ENGINE = $(or $(MMH_CONTAINER_ENGINE),$(shell command -v docker || command -v podman))
MMH_VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' mmh_bids/__init__.py)
image:  ## build the container image mmh:VERSION with docker or podman; TORCH_PIP_ARGS as above, none: CUDA build
	@test -n "$(ENGINE)" || { echo "error: no docker or podman: install one or set MMH_CONTAINER_ENGINE" >&2; exit 1; }
	$(ENGINE) build -t mmh:$(MMH_VERSION) --build-arg VERSION=$(MMH_VERSION) \
	  --build-arg REVISION=$$(git rev-parse --short HEAD 2>/dev/null || echo unknown) \
	  --build-arg TORCH_PIP_ARGS="$(TORCH_PIP_ARGS)" .

container-test: env-test  ## build the CPU image, run it closed and through Apptainer, compare with outside; docs/containers.md
	@test -n "$(ENGINE)" || { echo "error: no docker or podman: install one or set MMH_CONTAINER_ENGINE" >&2; exit 1; }
	$(BIN)/python -m pytest -q -m container tests/containers

benchmark-container: env  ## time to the first image in the container image mmh:VERSION and outside it
	$(BIN)/python benchmarks/container_start.py
	$(BIN)/python benchmarks/container_start.py --default-method --repeat 3

lint: env-test  ## ruff: rules and format; hadolint where it is
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	if [ -x $(BIN)/hadolint ]; then $(BIN)/hadolint Dockerfile; fi

types: env-test  ## mypy
	$(BIN)/mypy

validate: env-test  ## BIDS validator on data/ds-sample
	$(BIN)/bids-validator-deno --ignoreWarnings data/ds-sample

descriptor: env  ## make boutiques.json again from the app's own parser
	$(BIN)/python -m mmh_bids.cli.descriptor boutiques.json

sample: env  ## make the sample dataset again and compare it with data/ds-sample, byte for byte
	$(BIN)/mmh-simulate sample build/ds-sample --overwrite
	@# Older numpy and scipy, as Python 3.10 gets them, round a few voxels in a million otherwise.
	@diff -r data/ds-sample build/ds-sample && echo "data/ds-sample: byte-identical" || { \
	  echo "error: data/ds-sample differs from what mmh-simulate writes now (Python 3.10: expected);" \
	    "if that is meant, copy build/ds-sample over it and commit" >&2; exit 1; }

picture: demo  ## the picture in the README, from the demo's output
	$(BIN)/python benchmarks/overview_picture.py demo docs/images/overview.png

benchmark-registration: env  ## affine registration against known transforms
	$(BIN)/python benchmarks/registration.py

benchmark-brain: env  ## brain masks against the truth
	$(BIN)/python benchmarks/brain_extraction.py

benchmark-time: env  ## wall time and peak memory of a head, by step
	$(BIN)/python benchmarks/wall_time.py

benchmark-methods: env  ## the classical methods on the sample's travelling subject
	for method in none zscore whitestripe nyul histmatch; do \
	  $(BIN)/mmh data/ds-sample build/methods/$$method participant --method $$method \
	    --output-spaces MNI152NLin2009aSym -w build/methods/work || exit 1; done
	$(BIN)/python benchmarks/compare_methods.py $(foreach m,none zscore whitestripe nyul histmatch,build/methods/$(m))

benchmark-real: env-test  ## the promises of the README on the real heads in $$MMH_SHARED
	rm -rf build/real
	$(BIN)/python benchmarks/real_heads.py build/real

benchmark-travelling: env-test  ## methods on the same simulated people on four scanners; hours on two cores, resumes
	$(BIN)/python benchmarks/travelling.py

benchmark-parts: env-test  ## what each part of mmh-light does, on simulated people kept for tuning
	$(BIN)/python benchmarks/light_parts.py

benchmark-diffusion: env-test  ## the bundle of train-diffusion beside the light one, on one simulated person
	$(BIN)/python benchmarks/travelling.py --heads 13 --docs docs/benchmarks/stage-one \
	  --methods zscore mmh-light mmh-diffusion truth --model mmh-diffusion=build/mmh-diffusion

benchmark-paper: env-test  ## stage 1 of a volume at the published size on a GPU; on a CPU a small part of it, minutes
	$(BIN)/python benchmarks/paper_scale.py

benchmark-training-data: env-test  ## reading training volumes: from the cache and from NIfTI files, time and memory
	$(BIN)/python benchmarks/training_data.py

benchmark-real-multisite: env-test  ## spread between the sites of the real heads, and lesions, before and after
	$(BIN)/python benchmarks/real_multisite.py build/real-multisite

# Heads 13 to 16 are for the benchmark; 04 and 09 are held out of the training.
train-light: env-test  ## train the bundle mmh-light into build/mmh-light; an hour on two cores, resumes
	$(BIN)/mmh-train global $(wildcard $(addprefix $(MMH_SHARED)/data/labelmaps/head-,$(addsuffix _dseg.nii.gz,01 02 03 04 05 06 07 08 09 10 11 12))) \
	  --held-out head-04 head-09 --output build/mmh-light --work build/train-light --overwrite \
	  --source "Label maps of SynthSeg's training set (Apache-2.0, Billot et al. 2023)."

# Two looks for mmh-light, of scanners A (3 T) and B (1.5 T), which both scan thirty people: simulation and preprocessing take
# an hour, stage 1 half an hour, the looks ten minutes. Few people would leave their mean in a look: tissue properties differ.
# A dataset numbers its participants: who is held out is sub-04 of each (head-04, head-12, head-06 twice).
LOOKS := build/looks
LOOK_HEADS_1 := head-01 head-02 head-03 head-04 head-06 head-07
LOOK_HEADS_2 := head-08 head-09 head-10 head-12
LOOK_HEADS_3 := head-01 head-02 head-03 head-06 head-07 head-08 head-09 head-10 head-11 head-12
define look_images
	mkdir -p $(LOOKS)
	test -e $(LOOKS)/raw-$(1).txt || { \
	  $(BIN)/mmh-simulate heads $(LOOKS)/raw-$(1) --scanners A B --overwrite --seed $(3) \
	    --labels $(patsubst %,$(MMH_SHARED)/data/labelmaps/%_dseg.nii.gz,$(2)) && echo $(2) > $(LOOKS)/raw-$(1).txt; }
	$(BIN)/mmh $(LOOKS)/raw-$(1) $(LOOKS)/none-$(1) participant --method none -w $(LOOKS)/app-$(1)
endef
LOOK_SITES := $(foreach set,1 2 3 4,$(LOOKS)/none-$(set))
LOOK_FLAGS := --held-out sub-04 --no-transfer --no-sites --cache $(LOOKS)/removed --overwrite \
	--source "Simulated scans of label maps of SynthSeg's training set (Apache-2.0, Billot et al. 2023)."
train-looks: env-test  ## stage 2 of mmh-light for two simulated scanners, into build/looks/both; two hours on two cores, resumes
	$(call look_images,1,$(LOOK_HEADS_1),0)
	$(call look_images,2,$(LOOK_HEADS_2),0)
	$(call look_images,3,$(LOOK_HEADS_3),21)
	$(call look_images,4,$(LOOK_HEADS_3),22)
	$(BIN)/mmh-train target $(LOOK_SITES) --target-site A --label sim-A $(LOOK_FLAGS) \
	  --output $(LOOKS)/one --work $(LOOKS)/work-A
	$(BIN)/mmh-train target $(LOOK_SITES) --target-site B --label sim-B $(LOOK_FLAGS) \
	  --bundle $(LOOKS)/one --name mmh-light --output $(LOOKS)/both --work $(LOOKS)/work-B

benchmark-target: train-looks  ## stage 2 against the truth: scans of other scanners in the look of two targets; an hour more
	$(BIN)/python benchmarks/target.py --looks $(LOOKS) --model $(LOOKS)/both --targets A=sim-A B=sim-B

benchmark-looks: train-looks  ## for tuning: people that the looks learned from, each in the look of the other target; half an hour
	$(BIN)/python benchmarks/look_people.py --looks $(LOOKS) --model $(LOOKS)/both --sets 3 4
	$(BIN)/python benchmarks/person_levels.py --looks $(LOOKS)

# Stage 1 as published, as small as two cores can train: three heads on three scanners, 6 mm. Head 04 validates.
DIFFUSION_LABELS := $(addprefix $(MMH_SHARED)/data/labelmaps/head-,$(addsuffix _dseg.nii.gz,01 02 04))
train-diffusion: env-test  ## train a small diffusion into build/mmh-diffusion; half an hour on two cores, resumes
	@mkdir -p build/diffusion
	test -e build/diffusion/simulated || { \
	  $(BIN)/mmh-simulate heads build/diffusion/raw --labels $(DIFFUSION_LABELS) --scanners A C F --overwrite \
	  && touch build/diffusion/simulated; }
	$(BIN)/mmh build/diffusion/raw build/diffusion/none participant --method none -w build/diffusion/app
	$(BIN)/mmh-train global build/diffusion/none --method mmh-diffusion --held-out sub-03 --factor 6 --steps 500 --validate-every 250 \
	  --learning-rate 1e-4 \
	  --output build/mmh-diffusion --work build/train-diffusion --overwrite \
	  --source "Simulated scans of label maps of SynthSeg's training set (Apache-2.0, Billot et al. 2023)."

# Heads 13 to 16 are for the benchmarks of the methods, as the scanners P to S.
train-encoder: env-test  ## train the small style encoder into build/small; an hour on two cores, resumes
	$(BIN)/mmh-train encoder $(wildcard $(addprefix $(MMH_SHARED)/data/labelmaps/head-,$(addsuffix _dseg.nii.gz,01 02 03 04 05 06 07 08 09 10 11 12))) \
	  --held-out head-04 head-05 head-09 --output build/small --work build/train-encoder --overwrite \
	  --source "Label maps of SynthSeg's training set (Apache-2.0, Billot et al. 2023)."

benchmark-style: env-test  ## style encoders: time, memory, and how well the small one tells scanners apart
	$(BIN)/python benchmarks/style_encoder.py
	$(BIN)/python benchmarks/style_neighbours.py

browser-test: env-test $(VENV)/.installed-browser  ## every report page in headless Chromium; screenshots in build/screenshots
	$(BIN)/python tests/reports/fetch_browser.py
	$(BIN)/python -m pytest -q -m browser tests/reports/test_browser.py

# Any outputs of `mmh --method none` do: what is measured is on the model grid.
benchmark-evaluation: env-test  ## where the measures behind the verdicts of mmh-evaluate lie, on outputs in $$(FOLDERS)
	$(BIN)/python benchmarks/evaluation_thresholds.py $(FOLDERS)

evaluate-sample: env  ## mmh-evaluate on the sample dataset: nyul and mmh-light beside the controls
	for method in none nyul mmh-light; do \
	  $(BIN)/mmh data/ds-sample build/evaluation/$$method participant --method $$method -w build/evaluation/work || exit 1; done
	$(BIN)/mmh-evaluate data/ds-sample build/evaluation/out \
	  --methods $(foreach m,none nyul mmh-light,$(m)=build/evaluation/$(m))

# Heads and scanners that nothing was trained on; the standards of zscore-to-P are learned from the study itself.
STUDY := build/study
STUDY_METHODS := none zscore nyul mmh-light
evaluate-study: env  ## mmh-evaluate on a simulated study, four people on three scanners, T1w; 20 minutes of CPU, resumes
	@mkdir -p $(STUDY)
	test -e $(STUDY)/simulated || { \
	  $(BIN)/mmh-simulate heads $(STUDY)/raw --modalities T1w --scanners P Q R --overwrite \
	    --labels $(patsubst %,$(MMH_SHARED)/data/labelmaps/head-%_dseg.nii.gz,13 14 15 16) && touch $(STUDY)/simulated; }
	for method in $(STUDY_METHODS); do \
	  $(BIN)/mmh $(STUDY)/raw $(STUDY)/$$method participant --method $$method -w $(STUDY)/app || exit 1; done
	test -e $(STUDY)/standards || $(BIN)/mmh-train standards $(STUDY)/none --output $(STUDY)/standards
	$(BIN)/mmh $(STUDY)/raw $(STUDY)/zscore-to-P participant --method zscore --modalities T1w \
	  --model $(STUDY)/standards --target site:P -w $(STUDY)/app
	$(BIN)/mmh-evaluate $(STUDY)/raw $(STUDY)/out --modalities T1w \
	  --methods $(foreach m,$(STUDY_METHODS) zscore-to-P,$(m)=$(STUDY)/$(m))

benchmark-group: env-test  ## the group level's time and memory for 200 and 2,000 generated images
	$(BIN)/python benchmarks/group_level.py

QC_FOLDERS ?= $(wildcard build/target/head-*/none $(LOOKS)/none-*)
benchmark-qc: env  ## how quality values are distributed over the output folders in QC_FOLDERS, and what known damage does to them
	$(BIN)/python benchmarks/qc_distributions.py $(QC_FOLDERS) --damage 12

clean:  ## remove the environment and everything made here
	rm -rf $(VENV) demo work build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment: made once, made again when the metadata or the pins change -------------------------------------

env: torch $(VENV)/.installed
env-test: torch $(VENV)/.installed-test

# Without `--no-deps` torch's own packages would come from the given index, at other versions than the pinned ones. The
# arguments are kept: another value later replaces the build, none leaves it alone.
torch: | $(BIN)/python
ifneq ($(strip $(TORCH_PIP_ARGS)),)
	@if [ "$$(cat $(VENV)/.torch-args 2>/dev/null)" != '$(TORCH_PIP_ARGS)' ]; then \
	  echo "installing torch with: $(TORCH_PIP_ARGS)"; \
	  $(PIP) --no-deps --force-reinstall torch $(TORCH_PIP_ARGS) && echo '$(TORCH_PIP_ARGS)' > $(VENV)/.torch-args; \
	fi
endif

# intensity-normalization asks for 3.11 but uses nothing that 3.10 lacks; its needs are in setup.cfg.
FOR_310 = if $(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 11))'; then \
	$(PIP) --no-deps --ignore-requires-python intensity-normalization; fi

$(VENV)/.installed: $(METADATA) | torch
	@echo "installing mmh_bids and what it needs (about 2 GB, some minutes)"
	$(PIP) -e .
	@$(FOR_310)
	touch $@

$(VENV)/.installed-test: $(METADATA) | torch
	@echo "installing mmh_bids, what it needs and the test tools (about 2 GB, some minutes)"
	$(PIP) -e '.[test]'
	@$(FOR_310)
	touch $@ $(VENV)/.installed

$(VENV)/.installed-browser: $(VENV)/.installed-test
	$(PIP) -e '.[browser]'
	touch $@

$(BIN)/python:
	@for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.10); do \
	  if ! "$$python" -c '' 2>/dev/null; then reason="$$reason $$python: not found or broken;"; continue; fi; \
	  if ! "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then \
	    reason="$$reason $$python: older than 3.10;"; continue; fi; \
	  if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	    reason="$$reason $$python: has no venv module (Debian, Ubuntu: install python3-venv);"; continue; fi; \
	  echo "making $(VENV) with $$("$$python" --version)"; \
	  exec "$$python" -m venv $(VENV); \
	done; \
	echo "error: no Python of 3.10 or newer with venv:$$reason install one, or name it: make PYTHON=/path/to/python3" >&2; \
	exit 1
