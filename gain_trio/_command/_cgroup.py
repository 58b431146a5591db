"""How much CPU time the control group grants (cgroups(7)).

A process sees its groups' names in /proc/self/cgroup, and the groups' files below /sys/fs/cgroup.  In a container the two
need not fit: the name may be that of the host while only the container's own part is mounted.  So every group from the
named one up to the mounted root is asked, those that cannot be seen are passed over, and the smallest bound counts,
as it does for the kernel.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath


def _quota_v2(folder: Path) -> float | None:
    """``cpu.max``: "200000 100000", or "max 100000"."""
    quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    """``cpu.cfs_quota_us`` is -1 for no bound."""
    quota = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
    period = int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))
    return None if quota < 0 else quota / period


def cpu_quota(root: Path) -> float | None:
    """CPUs' worth of time that the control groups of this process grant, or None when they set no bound.

    Raises:
      OSError: /proc/self/cgroup cannot be read.
      LookupError: it names no group with a CPU controller.
    """
    mounts = root / "sys/fs/cgroup"
    for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        number, controllers, name = line.split(":", 2)
        if "cpu" in controllers.split(","):
            mount, read = mounts / controllers, _quota_v1
            if not mount.exists():  # "cpu,cpuacct" has links by each of its names
                mount = mounts / "cpu"
                mount.stat()  # if that is not there either, nothing is known
        elif number == "0" and (mounts / "cgroup.controllers").exists():
            mount, read = mounts, _quota_v2
        else:
            continue
        quotas = []
        path = PurePosixPath(name.lstrip("/"))
        for part in (path, *path.parents):
            try:
                quotas.append(read(mount / part))
            except FileNotFoundError:  # the root group has no such file, and a group may lie outside what is mounted
                continue
        return min((quota for quota in quotas if quota is not None), default=None)
    raise LookupError("/proc/self/cgroup names no group with a CPU controller")
