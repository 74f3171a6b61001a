#!/usr/bin/env bash
# From a fresh clone to a report: installs, draws 1,000 digits on two processes, evaluates them. A second call does what is left.
# Options are handed to sample_ddp.py, for example: bash scripts/demo.sh --cfg-scale 4 --labels balanced
set -euo pipefail
source "$(dirname "$0")/setup.sh"

# Unset, torchrun gives each process one thread.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(python -c 'import os; print(max(1, (os.cpu_count() or 2) // 2))')}
torchrun --standalone --nproc_per_node=2 sample_ddp.py --preset digits --num-fid-samples 1000 --ref digits "$@"
