#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Data parallel on the cards of one host, by OpenMPI (4.0.3, which MindSpore's documentation asks for). Not run.
#   CARDS=8 bash ms_latte/scripts/run_mpirun.sh CONFIG --output_path output/sky
# Several hosts: HOSTFILE=hosts, lines of `address slots=8`.
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: [CARDS=8] [HOSTFILE=FILE] $0 CONFIG [--key value ...]" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
config=$1
shift

hosts=()
[ -z "${HOSTFILE:-}" ] || hosts=(--hostfile "$HOSTFILE")
root=()
[ "$(id -u)" -ne 0 ] || root=(--allow-run-as-root)
exec mpirun "${root[@]}" "${hosts[@]}" -n "${CARDS:-8}" --output-filename "${LOGS:-mpirun_log}" --merge-stderr-to-stdout \
  python "$here/../train.py" -c "$config" --use_parallel True "$@"
