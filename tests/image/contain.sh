#!/usr/bin/env bash
# Runs COMMAND in ROOT as a locked-down pod would run it: everything read-only except an empty /tmp, no capabilities, no new
# privileges, a user that no password file knows. MODEL appears as /model.ubj, which must exist in ROOT as a mount point.
#
#     unshare --mount --pid --fork --kill-child contain.sh ROOT USER MODEL COMMAND...
#
# COMMAND becomes process 1 of the process namespace, where a signal without a handler is ignored, as in a container. The
# mounts vanish with the namespace. The network is the machine's.
set -euo pipefail

root=$1 user=$2 model=$3
shift 3

mount --bind "$root" "$root"
mount --bind "$model" "$root/model.ubj"
mount --options remount,bind,ro "$root/model.ubj"
mount --options remount,bind,ro "$root"
mount --types tmpfs --options mode=1777,nosuid,nodev,size=64m tmpfs "$root/tmp"
mount --types proc --options nosuid,nodev,noexec proc "$root/proc"
mount --rbind --options ro /sys "$root/sys"
mount --types tmpfs --options mode=0755,nosuid,size=64k tmpfs "$root/dev"
for device in null zero full random urandom; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mount --options remount,ro "$root/dev"

exec setpriv --no-new-privs --inh-caps=-all chroot --groups= --userspec="$user" "$root" "$@"
