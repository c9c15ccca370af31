# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced by the scripts that use msrun. launch WORDS...: msrun with these words, ended by SIGTERM and Ctrl-C with a
# checkpoint. msrun alone would die and leave its workers running, because they are in sessions of their own.

launch() {
  local status=0
  stopped=0
  msrun "$@" &
  launcher=$!
  trap tell_workers TERM INT
  wait "$launcher" || status=$?
  if [ "$stopped" -ne 0 ]; then  # the signal ended that wait
    wait "$launcher" || true
    status=143
  fi
  return "$status"
}

tell_workers() {
  local pid
  stopped=1
  for pid in $(pgrep -P "$launcher"); do  # the scheduler among them stays until the workers are gone
    if tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | grep -qx MS_ROLE=MS_WORKER; then
      kill -TERM "$pid" 2>/dev/null || true
    fi
  done
}
