#!/usr/bin/env bash
# Submits an array job that draws a run for each guidance scale and seed, and a job that evaluates them all when they are complete:
#   bash scripts/slurm/submit_sweep.sh NAME "1.0 1.25 1.5" "0 1 2" REF.npz --ckpt DiT-XL-2-256x256.pt
# SBATCH_OPTIONS holds what sbatch is to be told for both, such as "--gpus-per-node=8 --partition=scavenge".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
if [ $# -lt 4 ]; then
    echo "error: expected NAME, scales, seeds and a reference, then options of sample_ddp.py; got $# arguments" >&2
    exit 2
fi
name=$1 reference=$4
read -ra scales <<< "$2"
read -ra seeds <<< "$3"
read -ra options <<< "${SBATCH_OPTIONS:-}"
runs=()
for scale in "${scales[@]}"; do
    for seed in "${seeds[@]}"; do
        runs+=("$name-cfg-$scale-seed-$seed")
    done
done
drawing=$(sbatch --parsable "${options[@]}" --array="0-$((${#runs[@]} - 1))" scripts/slurm/sweep.sbatch "$name" "$2" "$3" "${@:5}")
evaluating=$(sbatch --parsable "${options[@]}" --dependency="afterok:$drawing" --kill-on-invalid-dep=yes \
    scripts/slurm/evaluate.sbatch "$reference" "${runs[@]}")
echo "drawing ${#runs[@]} runs in job $drawing, evaluating them in job $evaluating"
