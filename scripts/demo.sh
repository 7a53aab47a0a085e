#!/usr/bin/env bash
# The whole path on a laptop: simulate a cohort, make shards of it, train three phases, evaluate; and one real run to shards and back.
#   scripts/demo.sh [FOLDER]      FOLDER (default: demo/ in the checkout) receives everything; a second call starts from scratch
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
out=${1:-$root/demo}
enter_environment demo
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export MPLBACKEND=Agg
command -v nvidia-smi > /dev/null || export DS_ACCELERATOR=cpu # DeepSpeed warns at every start otherwise

if [ -e "$out" ] && [ ! -e "$out/.boldstream-demo" ]; then
  echo "error: $out exists and is not a demo folder; name another: scripts/demo.sh FOLDER" >&2
  exit 2
fi
rm -rf "$out"
mkdir -p "$out"
touch "$out/.boldstream-demo"
out=$(cd "$out" && pwd)
cd "$out"

step() { # step COMMAND...: show a command, run it, tell how long it took
  printf '\n$ %s\n' "$*"
  local began=$SECONDS
  "$@"
  printf '[%d s]\n' $((SECONDS - began))
}

echo "=== 1. a real run (nitime's fmri1.nii.gz) to shards and back"
mkdir real
cp "$(python -c 'import importlib.util; print(importlib.util.find_spec("nitime").submodule_search_locations[0])')/data/fmri1.nii.gz" real/
step ingest-fmri --src real --out real-shards --workers 1
step python "$root/scripts/compare_with_nibabel.py" --src real --shards real-shards

echo; echo "=== 2. a cohort whose connectivity differs between two groups, as fMRIPrep would leave it"
step simulate-fmri --out cohort --subjects 120 --frames 120 --seed 1 --effect-fc 0.3
step ingest-fmri --src cohort --out shards --workers 2 --shard-size 32MB

echo; echo "=== 3. three phases, each from the one before; deepspeed, torchrun and plain python"
step deepspeed -q --num_accelerators 2 "$root/train.py" --phase 1 --preset tiny --shards shards --out runs/p1 \
  --split_stratify group site --split_fractions 0.6 0.15 0.25
step torchrun --standalone --nproc_per_node 2 "$root/train.py" --phase 2 --preset tiny --shards shards --out runs/p2 --init runs/p1
step python "$root/train.py" --phase 3 --preset tiny --shards shards --out runs/p3 --init runs/p2 --target group

echo; echo "=== 4. the untouched test subjects"
step eval-fmri report --checkpoint runs/p3 --shards shards --out report --atlas cohort/atlas-boldstream_dseg.nii.gz \
  --explain-subjects 8 --explain-windows 2

cat <<END

done in $((SECONDS / 60)) min $((SECONDS % 60)) s
  shard sets   $out/shards  $out/real-shards
  checkpoints  $out/runs/p1  $out/runs/p2  $out/runs/p3
  report       $out/report/report.html   (open it in a browser)
END
