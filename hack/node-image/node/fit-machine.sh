#!/usr/bin/env bash
# Fits a node to machines that kind's own image isn't made for. The entrypoint
# runs it before systemd starts.
set -euo pipefail

# cgroup v1: systemd mounts each controller that /proc/cgroups has, and so would
# make hierarchies that the machine doesn't have. Those are hidden from it.
if [[ ! -f /sys/fs/cgroup/cgroup.controllers ]]; then
	awk '/^#/ || $2 != 0' /proc/cgroups >/kind/cgroups
	mount --bind /kind/cgroups /proc/cgroups
fi

# Without CAP_SYS_RESOURCE (24) nobody may lower an oom_score_adj, as containerd
# does for what matters.
if (((0x$(awk '/^CapBnd:/ { print $2 }' /proc/self/status) >> 24 & 1) == 0)); then
	sed -i 's/restrict_oom_score_adj = false/restrict_oom_score_adj = true/' /etc/containerd/config.toml
fi
