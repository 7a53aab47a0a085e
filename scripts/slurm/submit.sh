#!/usr/bin/env bash
# Phases 1, 2, 3 and the report as four jobs, each waiting for the one before.
#   scripts/slurm/submit.sh --account=A --constraint=gpu      # the flags go to every sbatch
# SHARDS, TARGET, RUNS, REPORT, ATLAS, DEEPSPEED_CONFIG and FLAGS_1, FLAGS_2, FLAGS_3, FLAGS_EVAL as in the scripts;
# AFTER=JOB waits for a job first, such as the ingest's.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
runs=${RUNS:-runs}
mkdir -p "$runs"

submit() { # submit AFTER SCRIPT: prints the number of the job
  local after=$1 script=$2
  sbatch --parsable --kill-on-invalid-dep=yes ${after:+--dependency="afterok:$after"} "${sbatch_flags[@]}" "$here/$script"
}

sbatch_flags=("$@")
last=${AFTER:-}
for phase in 1 2 3; do
  flags=FLAGS_$phase
  export PHASE=$phase OUT=$runs/p$phase FLAGS=${!flags:-}
  last=$(submit "$last" train.sbatch)
  echo "phase $phase: job $last, $OUT"
  export INIT=$OUT
done
export CHECKPOINT=$runs/p3 OUT=${REPORT:-report} FLAGS=${FLAGS_EVAL:-}
last=$(submit "$last" eval.sbatch)
echo "report:  job $last, $OUT/report.html"
