#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Data parallel on the cards of one host, by msrun. Run on two processes of a CPU; not run on Ascend.
#   bash ms_latte/scripts/run_msrun.sh configs/training/sky_video.yaml --output_path output/sky
#   CARDS=2 bash ms_latte/scripts/run_msrun.sh CONFIG --device_target CPU     two processes of a CPU
set -euo pipefail

[ $# -ge 1 ] || { echo "usage: [CARDS=8] [PORT=8118] [LOGS=msrun_log] $0 CONFIG [--key value ...]" >&2; exit 2; }
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
config=$1
shift
# shellcheck source-path=SCRIPTDIR
. "$here/launch.sh"

# --join: wait for the workers, and end all of them with an error if one dies.
# --bind_core needs a host whose cores the cards share evenly; BIND=True asks for it.
launch \
  --worker_num="${CARDS:-8}" --local_worker_num="${CARDS:-8}" \
  --master_port="${PORT:-8118}" --log_dir="${LOGS:-msrun_log}" \
  --join=True --cluster_time_out="${TIMEOUT:-600}" --bind_core="${BIND:-False}" \
  "$here/../train.py" -c "$config" --use_parallel True "$@"
