#!/usr/bin/env bash
# All that only a GPU can show, in at most nine minutes and without a network: see gpu_acceptance.py, which takes the options.
# PYTHON names the interpreter; without one, python, which has torch.
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" scripts/gpu_acceptance.py "$@"
