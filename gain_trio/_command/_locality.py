"""Perfect locality: one CPU handles the interrupts, the sending and the connections of one queue of an interface.

The CPU that gets a receive queue's interrupt handles the packets that arrive there.  If the task that waits for them runs
on that CPU, too, and answers by a transmit queue whose completions come back to it, the connection's state never leaves
the CPU's caches.  A server does its part with a worker per CPU, ``SO_REUSEPORT``, and a filter that steers by CPU.  This
module writes the machine's part, as Documentation/networking/scaling.rst of the kernel describes it:

*RSS.*  ``/proc/irq/N/smp_affinity_list`` of the interrupt of queue *i* becomes the *i*-th CPU, starting over if there
are more queues than CPUs.

*XPS.*  ``queues/tx-i/xps_cpus`` becomes the *i*-th CPU; with more CPUs than queues the module deals the other CPUs out in
turn, so that each CPU has a queue to send by.  An interface with one transmit queue leaves no choice, and has no such file.

*RPS.*  ``queues/rx-i/rps_cpus`` becomes 0, which turns it off: RPS would pass packets on to another CPU.

Finding the interface's interrupts is the hard part, because every driver names them in its own way.  The kernel lists
those of the device in ``device/msi_irqs`` (of the device's parent, where a virtio or Xen device sits on a PCI one), and
``/proc/interrupts`` has their names.  A number in the name that belongs to neither the interface nor the bus is the
queue's: ``eth0-TxRx-3``, ``virtio2-input.3``, ``mlx5_comp3@pci:0000:00:05.0``, ``eth0-q3-rx``.  The module leaves
interrupts of administration (``config``, ``async``, ``mgmnt``) alone.

The module reads and checks everything before it writes.  If a write fails, it restores what it had written before.
irqbalance undoes it all within seconds, and so does a driver that is reset; no setting survives a restart.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs

MAX_CPU = 8191
"""The highest CPU number that the kernel can be built for (CONFIG_NR_CPUS on x86)."""

_ADMINISTRATION = re.compile(
    r"(?:^|[^a-z])(?:config|async|mgmn?t|admin|aenq|ctrl|control|misc|event|fdir|ptp|mbox|lsc|err(?:or)?|cmd|pages?|health)",
    re.IGNORECASE,
)
_QUEUE = re.compile(r"rx|tx|input|output|comp|queue", re.IGNORECASE)
_BUS = re.compile(r"@.*|[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-9a-f]", re.IGNORECASE)


class LocalityError(Exception):
    """The change is impossible; the message says why, and what would help."""

    def __init__(self, reason: str, *, is_half_done: bool = False) -> None:
        super().__init__(reason)
        self.is_half_done = is_half_done
        """Whether a file was written whose old content could not be restored."""


@attrs.frozen
class Change:
    """One file, and its old and new content."""

    path: str
    old: str
    new: str
    about: str
    """The purpose of the change, for a person."""

    @property
    def makes_a_difference(self) -> bool:
        """Whether the new content means something else than the old: the kernel may write the same in another way."""
        if self.path.endswith("_list"):
            return parse_cpus(self.old) != parse_cpus(self.new)
        return _parse_mask(self.old) != _parse_mask(self.new)


@attrs.frozen
class Plan:
    """The changes to make."""

    interface: str
    cpus: tuple[int, ...]
    changes: tuple[Change, ...]
    notes: tuple[str, ...]
    """Notes for a person on what stays as it is."""


@attrs.frozen
class _Interrupt:
    number: int
    name: str
    queue: int


# --- CPUs ---


def parse_cpus(text: str) -> tuple[int, ...]:
    """CPUs in the kernel's list format, ``0-3,8``, in ascending order.

    Raises:
      LocalityError: the text is no such list.
    """
    cpus: set[int] = set()
    for part in text.strip().split(","):
        match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part.strip())
        if match is None:
            raise LocalityError(f"{text.strip()!r} is not a list of CPUs: they are written 0-3,8")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last > MAX_CPU:
            raise LocalityError(f"{part.strip()!r} are no CPUs: they go up, and to {MAX_CPU} at most")
        cpus.update(range(first, last + 1))
    return tuple(sorted(cpus))


def list_text(cpus: Iterable[int]) -> str:
    """Format CPUs as the kernel's list: ``0-3,8``."""
    parts = []
    # Neighbours have the same distance to their position.
    for _distance, group in itertools.groupby(enumerate(sorted(cpus)), lambda pair: pair[1] - pair[0]):
        run = [cpu for _position, cpu in group]
        parts.append(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}")
    return ",".join(parts)


def mask_text(cpus: Iterable[int]) -> str:
    """Format CPUs as the kernel's mask: hexadecimal words of 32 CPUs, the highest first, separated by commas."""
    mask = sum(1 << cpu for cpu in set(cpus))
    words: list[int] = []
    while mask or not words:
        words.append(mask & 0xFFFFFFFF)
        mask >>= 32
    return ",".join([f"{words[-1]:x}", *(f"{word:08x}" for word in reversed(words[:-1]))])


def _parse_mask(text: str) -> int:
    return int(text.replace(",", "") or "0", 16)


# --- reading ---


def plan(interface: str, cpus: Sequence[int] | None = None, *, root: Path = Path("/")) -> Plan:
    """Plan the changes that give each queue of ``interface`` one CPU.

    Args:
      interface: its name, ``eth0`` for example.
      cpus: the CPUs to use, in order; None: all that are online.
      root: the directory that has ``sys`` and ``proc``.

    Raises:
      LocalityError: there is no such interface, it has no device with queues, or a CPU is not online.
      OSError: a file cannot be read.
    """
    directory = _directory_of(interface, root)
    chosen = _chosen(cpus, root)
    receive, transmit = (_queues(directory, kind) for kind in ("rx", "tx"))
    queue_interrupts, others = _interrupts_of(interface, directory, root)
    notes = [f"left alone: interrupt {interrupt.number}, {interrupt.name}" for interrupt in others]
    changes = [_affinity(interrupt, chosen, root) for interrupt in queue_interrupts]
    if len(transmit) > 1:
        changes += [_xps(queue, number, len(transmit), chosen, root) for number, queue in enumerate(transmit)]
    else:
        notes.append("XPS is left alone: with one transmit queue there is nothing to choose")
    changes += [
        Change(_inside(queue / "rps_cpus", root), _read(queue / "rps_cpus"), "0", f"no RPS for receive queue {number}")
        for number, queue in enumerate(receive)
        if (queue / "rps_cpus").exists()  # a kernel without CONFIG_RPS has none
    ]
    if _runs(root, "irqbalance"):
        notes.append("irqbalance runs, and will undo this: systemctl disable --now irqbalance")
    idle = sorted(set(chosen) - {chosen[interrupt.queue % len(chosen)] for interrupt in queue_interrupts})
    if idle:
        notes.append(
            f"no queue interrupts CPU {list_text(idle)}: ethtool -L {interface} sets how many queues there are"
        )
    return Plan(interface, chosen, tuple(change for change in changes if change.makes_a_difference), tuple(notes))


def _directory_of(interface: str, root: Path) -> Path:
    network = root / "sys/class/net"
    if not network.is_dir():
        raise LocalityError("there is no /sys/class/net: this needs Linux, with sysfs")
    known = sorted(entry.name for entry in network.iterdir() if (entry / "queues").is_dir())
    if interface not in known:
        raise LocalityError(f"there is no network interface {interface!r}; there are: {', '.join(known) or 'none'}")
    directory = network / interface
    if not (directory / "device").exists():
        below = sorted(entry.name.removeprefix("lower_") for entry in directory.glob("lower_*"))
        if below:
            raise LocalityError(f"{interface} has no queues of its own; take what it is on: {', '.join(below)}")
        physical = [name for name in known if (network / name / "device").exists()]
        cure = f"those with a device are: {', '.join(physical)}" if physical else "there is none with a device here"
        raise LocalityError(f"{interface} is virtual: it has no device whose queues could be given to CPUs; {cure}")
    return directory


def _chosen(cpus: Sequence[int] | None, root: Path) -> tuple[int, ...]:
    online = parse_cpus(_read(root / "sys/devices/system/cpu/online"))
    if cpus is None:
        return online
    missing = sorted(set(cpus) - set(online))
    if missing:
        raise LocalityError(f"CPU {list_text(missing)} is not online; online are {list_text(online)}")
    return tuple(cpus)


def _queues(directory: Path, kind: str) -> list[Path]:
    found = [entry for entry in (directory / "queues").iterdir() if re.fullmatch(kind + "-[0-9]+", entry.name)]
    return sorted(found, key=lambda entry: int(entry.name.rpartition("-")[2]))


def _interrupts_of(interface: str, directory: Path, root: Path) -> tuple[list[_Interrupt], list[_Interrupt]]:
    """The interrupts of the queues, and those of administration."""
    device = (directory / "device").resolve()
    named = _all_interrupts(root)
    listed = {
        int(entry.name)
        for folder in (device / "msi_irqs", device.parent / "msi_irqs")
        if folder.is_dir()
        for entry in folder.iterdir()
        if entry.name.isdecimal()
    }
    token = re.compile(rf"(?<![0-9A-Za-z]){re.escape(interface)}(?![0-9A-Za-z])")
    own = [number for number, name in named.items() if token.search(name) and (not listed or number in listed)]
    # One device may have several interfaces as its ports: if names contain this interface, only those are its own.
    numbers = sorted(own or (number for number in named if number in listed))
    queues: list[_Interrupt] = []
    others: list[_Interrupt] = []
    for number in numbers:
        name = named[number]
        rest = _BUS.sub("", token.sub("", name)).replace(device.name, "")
        counted = re.findall("[0-9]+", rest)
        interrupt = _Interrupt(number, name, int(counted[-1]) if counted else 0)
        is_queue = not _ADMINISTRATION.search(rest) and (counted or _QUEUE.search(rest))
        (queues if is_queue else others).append(interrupt)
    if not queues:  # one interrupt for everything has the name of the interface, or of the device
        queues = [
            attrs.evolve(interrupt, queue=0) for interrupt in others if not _ADMINISTRATION.search(interrupt.name)
        ]
        others = [interrupt for interrupt in others if _ADMINISTRATION.search(interrupt.name)]
    if not queues:
        raise LocalityError(
            f"no interrupt of a queue of {interface} is in /proc/interrupts; is it up? ip link set {interface} up"
        )
    return queues, others


def _all_interrupts(root: Path) -> dict[int, str]:
    """The names in /proc/interrupts, by number; proc(5)."""
    heading, *lines = _read(root / "proc/interrupts").splitlines()
    cpus = len(heading.split())
    found = {}
    for line in lines:
        fields = line.split(maxsplit=cpus + 1)
        if len(fields) == cpus + 2 and fields[0].rstrip(":").isdecimal():
            # After the counts come the chip, the pin and the trigger, and after two spaces or more the name.
            found[int(fields[0].rstrip(":"))] = re.split(r"\s{2,}", fields[-1].rstrip())[-1]
    return found


def _affinity(interrupt: _Interrupt, cpus: Sequence[int], root: Path) -> Change:
    path = root / f"proc/irq/{interrupt.number}/smp_affinity_list"
    new = str(cpus[interrupt.queue % len(cpus)])
    return Change(_inside(path, root), _read(path), new, f"interrupt of {interrupt.name}")


def _xps(queue: Path, number: int, count: int, cpus: Sequence[int], root: Path) -> Change:
    mine = cpus[number::count] or (cpus[number % len(cpus)],)
    path = queue / "xps_cpus"
    return Change(_inside(path, root), _read(path), mask_text(mine), f"CPU {list_text(mine)} sends by queue {number}")


def _runs(root: Path, program: str) -> bool:
    for name in (root / "proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if _read(name) == program:
                return True
    return False


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="surrogateescape").strip()


def _inside(path: Path, root: Path) -> str:
    return "/" + str(path.relative_to(root))


# --- writing ---


def apply(what: Plan, *, root: Path = Path("/")) -> tuple[Change, ...]:
    """Make the changes of a plan.

    Returns:
      The changes that the kernel refused, because it manages the affinity of these interrupts itself.

    Raises:
      LocalityError: a file cannot be written; the files written before have their old content again.
    """
    done: list[Change] = []
    kept: list[Change] = []
    for change in what.changes:
        try:
            _write(root, change.path, change.new)
        except OSError as error:
            if error.errno == errno.EIO and change.path.startswith("/proc/irq/"):
                kept.append(change)  # a managed interrupt, genirq's IRQD_AFFINITY_MANAGED
                continue
            stuck = _put_back(done, root)
            outcome = "what had been written is put back" if done else "nothing has been written"
            if stuck:
                outcome = "and these could not be put back: " + "; ".join(command(each, undo=True) for each in stuck)
            raise LocalityError(f"{_why(change, error)}; {outcome}", is_half_done=bool(stuck)) from error
        done.append(change)
    return tuple(kept)


def _why(change: Change, error: OSError) -> str:
    cure = ""
    if error.errno in (errno.EACCES, errno.EPERM):
        cure = " (run it as root)"
    elif error.errno == errno.EROFS:
        cure = " (in a container these are read-only: run it on the host)"
    return f"cannot write {change.path}: {os.strerror(error.errno or errno.EIO)}{cure}"


def _put_back(done: Sequence[Change], root: Path) -> list[Change]:
    """Restore the old content of files, and return the changes for which that failed."""
    stuck = []
    for change in reversed(done):
        try:
            _write(root, change.path, change.old)
        except OSError:
            stuck.append(change)
    return stuck


def _write(root: Path, path: str, text: str) -> None:
    # As a shell's > does, and in one call: the kernel applies each write as a setting of its own.
    descriptor = os.open(root / path.lstrip("/"), os.O_WRONLY | os.O_TRUNC)
    try:
        os.write(descriptor, f"{text}\n".encode("ascii"))
    finally:
        os.close(descriptor)


def command(change: Change, *, undo: bool = False) -> str:
    """A change as a line for a shell.  An interface's name may have any characters but white space, ``/`` and ``:``."""
    return f"echo {shlex.quote(change.old if undo else change.new)} > {shlex.quote(change.path)}"
