#!/usr/bin/env bash
# All that only a GPU can show, in at most nine minutes and without a network: see gpu_acceptance.py, which takes the options.
# PYTHON names the interpreter that has torch (python3).
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" scripts/gpu_acceptance.py "$@"
