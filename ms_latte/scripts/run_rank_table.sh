#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Data parallel by a rank table, for clusters that make one (hccl_8p.json of hccl_tools.py, or of a scheduler). Not run.
#   RANK_TABLE_FILE=hccl_8p.json bash ms_latte/scripts/run_rank_table.sh CONFIG --output_path output/sky
# On several hosts: the same table everywhere, FIRST=0 on the first host, FIRST=8 on the second, SIZE=16.
set -euo pipefail

usage="usage: RANK_TABLE_FILE=FILE [CARDS=8] [FIRST=0] [SIZE=8] [LOGS=rank_table_log] $0 CONFIG [--key value ...]"
[ $# -ge 1 ] && [ -n "${RANK_TABLE_FILE:-}" ] || { echo "$usage" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
config=$1
shift
cards=${CARDS:-8}
RANK_TABLE_FILE=$(realpath "$RANK_TABLE_FILE")
export RANK_TABLE_FILE RANK_SIZE="${SIZE:-$cards}"
logs=${LOGS:-rank_table_log}
mkdir -p "$logs"

workers=()
stop() { kill "${workers[@]}" 2>/dev/null || true; }
trap stop EXIT
trap 'stop; wait; exit 143' INT TERM  # they save before they end
for ((card = 0; card < cards; card++)); do
  RANK_ID=$((${FIRST:-0} + card)) DEVICE_ID=$card \
    python "$here/../train.py" -c "$config" --use_parallel True "$@" >"$logs/worker_$card.log" 2>&1 &
  workers+=($!)
done
# The first one to end decides: the others would wait for it for ever.
for ((card = 0; card < cards; card++)); do
  wait -n
done
