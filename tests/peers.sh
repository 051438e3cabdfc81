#!/usr/bin/env bash
# Installs, on Debian, the foreign programs that tests marked `peers` talk to: oscsend and oscdump, systemd-analyze.
set -euo pipefail
for program in oscsend systemd-analyze; do
  command -v "$program" >/dev/null || missing=yes
done
[ -z "${missing:-}" ] && exit 0
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq liblo-tools systemd >/dev/null
