#!/usr/bin/env bash
# From a fresh clone to a report: installs, draws 1,000 digits on two processes, evaluates them. A second call does what is left.
# Options are handed to sample_ddp.py, for example: bash scripts/demo.sh --cfg-scale 4 --labels balanced
set -euo pipefail
source "$(dirname "$0")/setup.sh"

torchrun --standalone --nproc_per_node=2 sample_ddp.py --preset digits --num-fid-samples 1000 --ref digits "$@"
