#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The workers of one pod of an AscendJob, one process for each card; train_acjob.yaml calls it.
# Run on two processes of a CPU beside a scheduler started by hand; not run on Ascend.
set -euo pipefail

usage="usage: MS_ROLE=MS_WORKER MS_SCHED_HOST= MS_SCHED_PORT= MS_WORKER_NUM= MS_LOCAL_WORKER= MS_NODE_RANK= $0 CONFIG ..."
[ $# -ge 1 ] && [ "${MS_ROLE:-}" = MS_WORKER ] && [ -n "${MS_LOCAL_WORKER:-}" ] || { echo "$usage" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
config=$1
shift
logs=${LOGS:-pod_log}/${MS_NODE_RANK:-0}
mkdir -p "$logs"
export HCCL_CONNECT_TIMEOUT="${HCCL_CONNECT_TIMEOUT:-1200}"

workers=()
stop() { kill "${workers[@]}" 2>/dev/null || true; }
trap stop EXIT
trap 'stop; wait; exit 143' INT TERM  # they save before they end
for ((card = 0; card < MS_LOCAL_WORKER; card++)); do
  MS_NODE_ID=$((${MS_NODE_RANK:-0} * MS_LOCAL_WORKER + card)) DEVICE_ID=$card \
    python "$here/../train.py" -c "$config" --use_parallel True "$@" >"$logs/worker_$card.log" 2>&1 &
  workers+=($!)
done
# The first one that fails decides: the others would wait for it for ever.
for ((card = 0; card < MS_LOCAL_WORKER; card++)); do
  wait -n
done
