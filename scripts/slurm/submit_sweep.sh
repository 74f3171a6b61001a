#!/usr/bin/env bash
# Submits an array job that draws a run for each guidance scale and seed, and a job that evaluates them all when they are complete:
#   bash scripts/slurm/submit_sweep.sh NAME "1.0 1.25 1.5" "0 1 2" REF.npz --ckpt DiT-XL-2-256x256.pt --cache-dir /shared/fiducial
# SBATCH_OPTIONS holds what sbatch is to be told for both, such as "--gpus-per-node=8 --cpus-per-task=64 --mem=128G".
# Options after -- are those of python -m evaluation calc, such as "-- --metrics fid"; --cache-dir holds for both without that.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
source scripts/slurm/common.sh
if [ $# -lt 4 ]; then
    refuse "expected NAME, scales, seeds and a reference, then options of sample_ddp.py; got $# arguments"
fi
name=$1 reference=$4
read -ra scales <<< "$2"
read -ra seeds <<< "$3"
read -ra options <<< "${SBATCH_OPTIONS:-}"
drawing=() calc=()
for ((i = 5; i <= $#; i++)); do
    case ${!i} in
        --)
            calc+=("${@:i+1}")
            break
            ;;
        --cache-dir=*) calc+=("${!i}") ;;
        --cache-dir) calc+=("${@:i:2}") ;;
    esac
    drawing+=("${!i}")
done
runs=()
for scale in "${scales[@]}"; do
    for seed in "${seeds[@]}"; do
        runs+=("$name-cfg-$scale-seed-$seed")
    done
done
[ ${#runs[@]} -gt 0 ] || refuse "there is nothing to draw: the guidance scales are \"$2\" and the seeds \"$3\""
check_evaluation "$reference" "${calc[@]}"
array="0-$((${#runs[@]} - 1))"
first=$(sbatch --parsable "${options[@]}" --array="$array" scripts/slurm/sweep.sbatch "$name" "$2" "$3" "${drawing[@]}")
second=$(sbatch --parsable "${options[@]}" --dependency="afterok:$first" --kill-on-invalid-dep=yes \
    scripts/slurm/evaluate.sbatch "$reference" "${runs[@]}" "${calc[@]}")
echo "drawing ${#runs[@]} runs in job $first, evaluating them in job $second"
