#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Data parallel on several hosts, by msrun: the same command on every host, which differs in NODE alone. Not run.
#   NODE=0 HOSTS=2 MASTER=10.0.0.1 bash ms_latte/scripts/run_msrun_hosts.sh CONFIG --output_path /shared/output/sky
#   NODE=1 HOSTS=2 MASTER=10.0.0.1 bash ms_latte/scripts/run_msrun_hosts.sh CONFIG --output_path /shared/output/sky
# The first process of all writes; a resumed run reads on every host, so the output folder must be a shared one.
set -euo pipefail

usage="usage: NODE=0 HOSTS=2 MASTER=ADDRESS [CARDS=8] [PORT=8118] [LOGS=msrun_log] $0 CONFIG [--key value ...]"
[ $# -ge 1 ] && [ -n "${NODE:-}" ] && [ -n "${HOSTS:-}" ] && [ -n "${MASTER:-}" ] || { echo "$usage" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
config=$1
shift
# shellcheck source-path=SCRIPTDIR
. "$here/launch.sh"
cards=${CARDS:-8}

# Seconds until a card gives up on the others; the first step compiles, which may take minutes.
export HCCL_CONNECT_TIMEOUT="${HCCL_CONNECT_TIMEOUT:-1200}"
launch \
  --worker_num=$((cards * HOSTS)) --local_worker_num="$cards" --node_rank="$NODE" \
  --master_addr="$MASTER" --master_port="${PORT:-8118}" --log_dir="${LOGS:-msrun_log}" \
  --join=True --cluster_time_out="${TIMEOUT:-1200}" \
  "$here/../train.py" -c "$config" --use_parallel True "$@"
