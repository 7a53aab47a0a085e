#!/usr/bin/env bash
# Phases 1, 2, 3 and the report, each job submitted by the one before when it is through, however often that had to
# continue (PBS has no requeue from inside a job, and a dependency would end with the first job).
#   ACCOUNT=A QUEUE=prod scripts/pbs/submit.sh [-l select=4:ncpus=32:ngpus=4 ...]      # the flags go to the first qsub
# SHARDS, TARGET, RUNS and AFTER (a job to wait for, such as the ingest's) as in the scripts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
: "${ACCOUNT:?set ACCOUNT}"
runs=${RUNS:-runs}
mkdir -p "$runs"
variables="CHAIN=1,PHASE=1,OUT=$runs/p1,SHARDS=${SHARDS:-shards},TARGET=${TARGET:-sex},ACCOUNT=$ACCOUNT,QUEUE=${QUEUE:-prod}"
qsub -A "$ACCOUNT" -q "${QUEUE:-prod}" ${AFTER:+-W depend="afterok:$AFTER"} -v "$variables" "$@" scripts/pbs/train.pbs
