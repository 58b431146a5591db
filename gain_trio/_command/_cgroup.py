"""The CPU time that the control group grants (cgroups(7)).

A process sees its groups' names in /proc/self/cgroup, and the groups' files below /sys/fs/cgroup.  In a container the two
need not fit: the name may be that of the host while only the container's own part is mounted.  So this module reads every
group from the named one up to the mounted root, skips those that the container hides, and returns the smallest bound,
which is the one that the kernel applies.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath


def _quota_v2(folder: Path) -> float | None:
    """Read ``cpu.max``: "200000 100000", or "max 100000" for no bound."""
    quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    """Read ``cpu.cfs_quota_us``, which is -1 for no bound."""
    quota = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
    period = int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))
    return None if quota < 0 else quota / period


def cpu_quota(root: Path) -> float | None:
    """The number of CPUs whose time the control groups of this process grant, or None if they set no bound.

    Raises:
      OSError: /proc/self/cgroup cannot be read.
      LookupError: that file names no group with a CPU controller.
    """
    mounts = root / "sys/fs/cgroup"
    for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        number, controllers, name = line.split(":", 2)
        if "cpu" in controllers.split(","):
            mount, read = mounts / controllers, _quota_v1
            if not mount.exists():  # "cpu,cpuacct" has links by each of its names
                mount = mounts / "cpu"
                mount.stat()  # raises if that is missing, too
        elif number == "0" and (mounts / "cgroup.controllers").exists():
            mount, read = mounts, _quota_v2
        else:
            continue
        quotas = []
        path = PurePosixPath(name.lstrip("/"))
        for part in (path, *path.parents):
            try:
                quotas.append(read(mount / part))
            except FileNotFoundError:  # the root group has no such file, and a group may lie outside the mounted part
                continue
        return min((quota for quota in quotas if quota is not None), default=None)
    raise LookupError("/proc/self/cgroup names no group with a CPU controller")
