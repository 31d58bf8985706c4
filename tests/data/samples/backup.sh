#!/usr/bin/env bash
set -euo pipefail

target="${1:-/tmp/backup}"
keep=7

log() {
  printf '%s %s\n' "$(date +%H:%M)" "$*" >&2
}

prune() {
  local count=0
  for file in "$target"/*.tar; do
    count=$((count + 1))
    if [ "$count" -gt "$keep" ]; then
      log "removing $file"
      rm -f "$file"
    fi
  done
}

case "${2:-run}" in
  run) tar -cf "$target/new.tar" . && prune ;;
  list) ls -1 "$target" ;;
  *)
    log "unknown command"
    exit 2
    ;;
esac
