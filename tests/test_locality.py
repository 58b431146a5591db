"""gain-trio locality: what it would write, over trees that look like /sys and /proc of machines that are not here."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from support.fuzz import given, st
from support.processes import TIMEOUT, command, run

from gain_trio._command import _locality
from gain_trio._command._cli import main
from gain_trio._command._locality import LocalityError, apply, list_text, mask_text, parse_cpus, plan

pytestmark = pytest.mark.no_run

PCI = "0000:00:05.0"
CPUS = st.sets(st.integers(0, 300), min_size=1)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


class Tree:
    """A machine with these CPUs, and no interface but lo."""

    def __init__(self, root: Path, online: str = "0-3") -> None:
        self.root = root
        self._cpus = parse_cpus(online)
        self._interrupts: list[str] = []
        write(root / "sys/devices/system/cpu/online", online)
        write(root / "proc/1/comm", "init")
        self._queues("sys/devices/virtual/net/lo", 1, 1)
        (root / "sys/class/net").mkdir(parents=True)
        self._link("lo", "virtual/net/lo")
        self._write_interrupts()

    def _link(self, name: str, target: str) -> None:
        (self.root / "sys/class/net" / name).symlink_to(f"../../devices/{target}")

    def _queues(self, directory: str, receive: int, transmit: int) -> None:
        for number in range(receive):
            write(self.root / directory / f"queues/rx-{number}/rps_cpus", "00000000,00000000")
        for number in range(transmit):
            if transmit == 1:  # there the kernel gives no such file to read
                (self.root / directory / "queues/tx-0").mkdir(parents=True)
            else:
                write(self.root / directory / f"queues/tx-{number}/xps_cpus", "0")

    def _write_interrupts(self) -> None:
        heading = " " * 11 + "".join(f"CPU{cpu:<8}" for cpu in self._cpus)
        special = ["NMI:" + "          0" * len(self._cpus) + "   Non-maskable interrupts", "ERR:          0"]
        write(self.root / "proc/interrupts", "\n".join([heading, *self._interrupts, *special]))

    def interrupt(self, number: int, name: str, affinity: str | None = None) -> None:
        counts = "".join(f"{number * 7:>11}" for _ in self._cpus)
        self._interrupts.append(f"{number:>3}:{counts} PCI-MSIX-{PCI}   0-edge      {name}")
        write(self.root / f"proc/irq/{number}/smp_affinity_list", affinity or list_text(self._cpus))
        self._write_interrupts()

    def interface(
        self,
        name: str,
        queues: int,
        interrupts: Sequence[str],
        *,
        first: int = 24,
        bus: str | None = None,
        receive: int | None = None,
    ) -> None:
        """A device with interrupts of these names.  ``bus``: a device in between, as virtio's."""
        device = f"pci0000:00/{PCI}" + (f"/{bus}" if bus else "")
        directory = f"{device}/net/{name}"
        self._queues(f"sys/devices/{directory}", queues if receive is None else receive, queues)
        (self.root / "sys/devices" / directory / "device").symlink_to("../..")
        self._link(name, directory)
        for number, interrupt in enumerate(interrupts, first):
            write(self.root / f"sys/devices/pci0000:00/{PCI}/msi_irqs/{number}", "msix")
            self.interrupt(number, interrupt)

    def file(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def contents(self) -> dict[str, str]:
        return {str(path.relative_to(self.root)): path.read_text() for path in self.root.rglob("*") if path.is_file()}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def interrupts(tree: Tree, interface: str = "eth0", cpus: Sequence[int] | None = None) -> dict[str, str]:
    """The CPU of each interrupt, by name."""
    return {
        change.about.removeprefix("interrupt of "): change.new
        for change in plan(interface, cpus, root=tree.root).changes
        if "/irq/" in change.path
    }


def masks(tree: Tree, kind: str, cpus: Sequence[int] | None = None) -> dict[str, str]:
    return {
        change.path.split("/")[-2]: change.new
        for change in plan("eth0", cpus, root=tree.root).changes
        if change.path.endswith(kind)
    }


# --- which interrupts, and where to ---


@pytest.mark.parametrize(
    ("names", "bus"),
    [
        ([f"eth0-TxRx-{n}" for n in range(4)], None),  # ixgbe, igb, bnxt
        ([f"eth0-Tx-Rx-{n}" for n in range(4)], None),  # ena
        ([f"i40e-eth0-TxRx-{n}" for n in range(4)], None),
        ([f"mlx5_comp{n}@pci:{PCI}" for n in range(4)], None),
        ([f"gve-ntfy-blk{n}@pci:{PCI}" for n in range(4)], None),
        ([f"eth0-rxtx-{n}" for n in range(4)], None),  # vmxnet3
        ([f"virtio0-{kind}.{n}" for n in range(4) for kind in ("input", "output")], "virtio0"),
        ([f"eth0-q{n}-{kind}" for n in range(4) for kind in ("tx", "rx")], "vif-0"),  # Xen
    ],
    ids=["ixgbe", "ena", "i40e", "mlx5", "gve", "vmxnet3", "virtio", "xen"],
)
def test_queue_n_interrupts_cpu_n_whatever_the_driver_calls_it(tree: Tree, names: list[str], bus: str | None) -> None:
    tree.interface("eth0", 4, names, bus=bus)
    found = interrupts(tree)
    per_queue = len(names) // 4
    assert found == {name: str(position // per_queue) for position, name in enumerate(names)}


@pytest.mark.parametrize(
    ("name", "bus"),
    [
        ("virtio0-config", "virtio0"),
        (f"mlx5_async0@pci:{PCI}", None),
        (f"ena-mgmnt@pci:{PCI}", None),
        (f"i40e-{PCI}:misc", None),
        ("eth0-event-4", None),
        ("eth0", None),  # beside those of queues it is of the device as a whole
    ],
)
def test_interrupts_of_administration_are_left_alone(tree: Tree, name: str, bus: str | None) -> None:
    tree.interface("eth0", 2, [name, "eth0-TxRx-0", "eth0-TxRx-1"], bus=bus)
    tree.interrupt(99, "nvme0q1")
    if name.startswith(("eth0", "virtio", "i40e", "mlx5", "ena")):
        assert list(interrupts(tree)) == ["eth0-TxRx-0", "eth0-TxRx-1"]


def test_administration_beside_queues_that_are_named_for_the_device(tree: Tree) -> None:
    tree.interface("eth0", 1, ["virtio0-config", "virtio0-input.0", "virtio0-output.0"], bus="virtio0")
    what = plan("eth0", root=tree.root)
    assert [change.about for change in what.changes] == [
        "interrupt of virtio0-input.0",
        "interrupt of virtio0-output.0",
    ]
    assert "left alone: interrupt 24, virtio0-config" in what.notes
    assert any("no queue interrupts CPU 1-3" in note for note in what.notes)


@pytest.mark.parametrize("name", ["eth0", "virtio0-rx"])
def test_an_interface_with_one_interrupt(tree: Tree, name: str) -> None:
    tree.interface("eth0", 1, [name], bus="virtio0")
    assert interrupts(tree, cpus=[2]) == {name: "2"}


def test_two_ports_of_one_device_are_told_apart_by_their_names(tree: Tree) -> None:
    tree.interface("eth0", 2, ["eth0-TxRx-0", "eth0-TxRx-1"])
    tree.interface("eth00", 2, ["eth00-TxRx-0", "eth00-TxRx-1"], first=30)
    tree.interface("eth1", 2, ["eth1-TxRx-0", "eth1-TxRx-1"], first=40)
    assert list(interrupts(tree)) == ["eth0-TxRx-0", "eth0-TxRx-1"]
    assert list(interrupts(tree, "eth1")) == ["eth1-TxRx-0", "eth1-TxRx-1"]


def test_without_a_list_of_the_device_the_names_decide(tree: Tree) -> None:
    tree.interface("eth0", 2, [])
    tree.interrupt(50, "other-0")
    tree.interrupt(51, "eth0-rx-0")
    tree.interrupt(52, "eth0-rx-1")
    assert interrupts(tree) == {"eth0-rx-0": "0", "eth0-rx-1": "1"}


def test_more_queues_than_cpus_begin_again(tree: Tree) -> None:
    tree.interface("eth0", 4, [f"eth0-TxRx-{n}" for n in range(4)])
    assert list(interrupts(tree, cpus=[3, 1]).values()) == ["3", "1", "3", "1"]
    assert masks(tree, "xps_cpus", [3, 1]) == {"tx-0": "8", "tx-1": "2", "tx-2": "8", "tx-3": "2"}


def test_more_cpus_than_queues_are_dealt_out_for_sending(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "0-7")
    tree.interface("eth0", 3, [f"eth0-TxRx-{n}" for n in range(3)])
    assert list(interrupts(tree).values()) == ["0", "1", "2"]
    assert masks(tree, "xps_cpus") == {"tx-0": "49", "tx-1": "92", "tx-2": "24"}


def test_masks_of_more_than_32_cpus_have_words(tmp_path: Path) -> None:
    tree = Tree(tmp_path, "0-1,32,64")
    tree.interface("eth0", 12, [f"eth0-TxRx-{n}" for n in range(12)])
    found = masks(tree, "xps_cpus")
    assert (found["tx-2"], found["tx-3"]) == ("1,00000000", "1,00000000,00000000")
    assert list(found) == [f"tx-{n}" for n in range(12)]  # and 10 comes after 9
    assert interrupts(tree)["eth0-TxRx-11"] == "64"


def test_rps_is_turned_off_where_it_is_on(tree: Tree) -> None:
    tree.interface("eth0", 2, ["eth0-TxRx-0", "eth0-TxRx-1"], receive=3)
    write(tree.file("/sys/class/net/eth0/queues/rx-1/rps_cpus"), "0000000f,00000000")
    assert masks(tree, "rps_cpus") == {"rx-1": "0"}


def test_with_one_queue_there_is_nothing_to_choose_for_sending(tree: Tree) -> None:
    tree.interface("eth0", 1, ["eth0-TxRx-0"])
    what = plan("eth0", root=tree.root)
    assert [change.path for change in what.changes] == ["/proc/irq/24/smp_affinity_list"]
    assert any("one transmit queue" in note for note in what.notes)


def test_irqbalance_is_told_of(tree: Tree) -> None:
    tree.interface("eth0", 1, ["eth0-TxRx-0"])
    assert not any("irqbalance" in note for note in plan("eth0", root=tree.root).notes)
    write(tree.root / "proc/812/comm", "irqbalance")
    assert any("disable --now irqbalance" in note for note in plan("eth0", root=tree.root).notes)


# --- what cannot be done ---


def refusal(tree: Tree, interface: str, cpus: Sequence[int] | None = None) -> str:
    with pytest.raises(LocalityError) as caught:
        plan(interface, cpus, root=tree.root)
    return str(caught.value)


def test_what_cannot_be_done_says_why(tree: Tree) -> None:
    assert refusal(tree, "eth7") == "there is no network interface 'eth7'; there are: lo"
    assert "lo is virtual" in refusal(tree, "lo")
    assert "there is none with a device here" in refusal(tree, "lo")
    assert "there is no network interface '../net/lo'" in refusal(tree, "../net/lo")
    tree.interface("eth0", 4, [f"eth0-TxRx-{n}" for n in range(4)])
    assert "those with a device are: eth0" in refusal(tree, "lo")
    assert refusal(tree, "eth0", [2, 4, 5]) == "CPU 4-5 is not online; online are 0-3"


def test_an_interface_on_others_names_them(tree: Tree) -> None:
    tree.interface("eth0", 1, ["eth0-TxRx-0"])
    tree._queues("sys/devices/virtual/net/bond0", 1, 1)
    tree._link("bond0", "virtual/net/bond0")
    for lower in ("eth1", "eth0"):
        tree.file(f"/sys/class/net/bond0/lower_{lower}").symlink_to("../lo")
    assert refusal(tree, "bond0") == "bond0 has no queues of its own; take what it is on: eth0, eth1"


def test_an_interface_that_is_down_has_no_interrupts(tree: Tree) -> None:
    tree.interface("eth0", 4, [])
    assert "ip link set eth0 up" in refusal(tree, "eth0")


def test_a_system_without_sysfs(tmp_path: Path) -> None:
    with pytest.raises(LocalityError, match="needs Linux"):
        plan("eth0", root=tmp_path)


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1,,2", "1 2", "99999", "0-9000", "0x1"])
def test_what_is_no_list_of_cpus(text: str) -> None:
    with pytest.raises(LocalityError):
        parse_cpus(text)


@given(CPUS)
def test_lists_and_masks_say_what_they_are_made_of(cpus: set[int]) -> None:
    assert parse_cpus(list_text(cpus)) == tuple(sorted(cpus))
    words = mask_text(cpus).split(",")
    assert all(len(word) == 8 for word in words[1:])
    assert int("".join(words), 16) == sum(2**cpu for cpu in cpus)


# --- writing ---


def four_queues(tree: Tree) -> Tree:
    tree.interface("eth0", 4, [f"eth0-TxRx-{n}" for n in range(4)])
    return tree


def failing_at(number: int, error: int) -> Callable[[Path, str, str], None]:
    real, calls = _locality._write, 0

    def fail(root: Path, path: str, text: str) -> None:
        nonlocal calls
        calls += 1
        if calls == number:
            raise OSError(error, os.strerror(error), path)
        real(root, path, text)

    return fail


def test_it_writes_what_it_planned_and_nothing_else(tree: Tree) -> None:
    before = four_queues(tree).contents()
    what = plan("eth0", root=tree.root)
    assert apply(what, root=tree.root) == ()
    after = tree.contents()
    written = {change.path: change.new for change in what.changes}
    assert len(written) == 8
    for path, new in written.items():
        assert tree.file(path).read_text() == new + "\n"
    changed = {path for path in after if after[path] != before[path]}
    assert changed == {str(tree.file(path).resolve().relative_to(tree.root.resolve())) for path in written}
    assert plan("eth0", root=tree.root).changes == ()


@pytest.mark.parametrize(
    ("error", "reason"),
    [(errno.EACCES, "run it as root"), (errno.EROFS, "run it on the host"), (errno.EINVAL, "Invalid")],
)
@pytest.mark.parametrize(("number", "outcome"), [(1, "nothing has been written"), (6, "is put back")])
def test_a_write_that_fails_leaves_all_as_it_was(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, *, error: int, reason: str, number: int, outcome: str
) -> None:
    before = four_queues(tree).contents()
    monkeypatch.setattr(_locality, "_write", failing_at(number, error))
    with pytest.raises(LocalityError, match=reason) as caught:
        apply(plan("eth0", root=tree.root), root=tree.root)
    assert outcome in str(caught.value)
    assert not caught.value.is_half_done
    assert tree.contents() == before


def test_what_cannot_be_put_back_is_named_with_its_command(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    four_queues(tree)
    refused = failing_at(3, errno.EACCES)

    def fail(root: Path, path: str, text: str) -> None:
        if text == "0-3" and path.endswith("/24/smp_affinity_list"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
        refused(root, path, text)

    monkeypatch.setattr(_locality, "_write", fail)
    with pytest.raises(
        LocalityError, match=r"could not be put back: echo 0-3 > /proc/irq/24/smp_affinity_list$"
    ) as caught:
        apply(plan("eth0", root=tree.root), root=tree.root)
    assert caught.value.is_half_done
    assert tree.file("/proc/irq/25/smp_affinity_list").read_text() == "0-3\n"


def test_an_interrupt_that_the_kernel_manages_is_left_to_it(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    four_queues(tree)
    monkeypatch.setattr(_locality, "_write", failing_at(2, errno.EIO))
    kept = apply(plan("eth0", root=tree.root), root=tree.root)
    assert [change.path for change in kept] == ["/proc/irq/25/smp_affinity_list"]
    assert tree.file("/proc/irq/26/smp_affinity_list").read_text() == "2\n"


# --- the command ---


def locality(tree: Tree, *arguments: str | Path) -> tuple[int, str, str]:
    return command("locality", *arguments, "--root", tree.root)


def test_a_dry_run_prints_and_writes_nothing(tree: Tree) -> None:
    before = four_queues(tree).contents()
    status, out, err = locality(tree, "eth0", "--dry-run", "--cpus", "1,3")
    assert (status, err) == (0, "")
    assert tree.contents() == before
    lines = out.splitlines()
    assert lines[0] == "# eth0: a queue a CPU, of CPUs 1,3"
    assert "# dry run: nothing is written" in lines
    assert "echo 3 > /proc/irq/25/smp_affinity_list  # interrupt of eth0-TxRx-1" in lines
    assert "echo 8 > /sys/class/net/eth0/queues/tx-3/xps_cpus  # CPU 3 sends by queue 3" in lines
    assert "#   echo 0-3 > /proc/irq/25/smp_affinity_list" in lines


def in_tree(tree: Tree, script: str) -> None:
    """Run what was printed, on the tree's files."""
    text = re.sub("> ('?)/", rf"> \1{tree.root}/", script)
    subprocess.run(["sh", "-e", "-c", text], timeout=TIMEOUT, check=True)


def test_what_a_dry_run_prints_does_what_the_command_does(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = four_queues(Tree(tmp_path_factory.mktemp("other")))
    _status, script, _err = locality(four_queues(tree), "eth0", "--dry-run")
    in_tree(tree, script)
    status, out, err = locality(other, "eth0")
    assert (status, err) == (0, "")
    assert out == script.replace("# dry run: nothing is written\n", "")
    assert tree.contents() == other.contents()


def test_the_undo_file_is_the_way_back(tree: Tree, tmp_path: Path) -> None:
    before = four_queues(tree).contents()
    undo = tmp_path / "undo.sh"
    assert locality(tree, "eth0", "--undo-file", undo)[0] == 0
    assert os.access(undo, os.X_OK)
    script = undo.read_text()
    undo.unlink()
    assert tree.contents() != before
    in_tree(tree, script)
    assert tree.contents() == before
    undo.write_text("precious")
    status, out, err = locality(tree, "eth0", "--undo-file", undo)
    assert (status, out) == (1, "")
    assert "there is a file already" in err
    undo.unlink()
    assert tree.contents() == before


@pytest.mark.parametrize("name", ["e;id>x", "$(id>x)", "`id>x`", "a'b", 'a"b', "a&id>x", "e\x1b[0m", "\u00e9", "~"])
def test_an_interface_of_any_name_is_quoted(tree: Tree, tmp_path: Path, name: str) -> None:
    tree.interface(name, 4, [f"{name}-{number}" for number in range(4)])
    before = tree.contents()
    undo = tmp_path / "undo.sh"
    status, out, err = locality(tree, name, "--undo-file", undo)
    assert (status, err) == (0, "")
    script = undo.read_text()
    undo.unlink()
    after = tree.contents()
    assert after != before
    in_tree(tree, script)
    assert tree.contents() == before, "the way back, and nothing else: no file was made"
    in_tree(tree, out)
    assert tree.contents() == after, "what is printed does the same"


def test_a_program_of_any_name_is_no_matter(tree: Tree) -> None:
    """Every user can name a process like irqbalance or any other program (prctl(2), PR_SET_NAME)."""
    path = tree.root / "proc/7/comm"
    path.parent.mkdir()
    path.write_bytes(b"\xff\x1b[0m\n")
    assert locality(four_queues(tree), "eth0", "--dry-run")[0] == 0


def test_a_second_time_there_is_nothing_to_do(tree: Tree, tmp_path: Path) -> None:
    locality(four_queues(tree), "eth0")
    status, out, _err = locality(tree, "eth0", "--undo-file", tmp_path / "undo.sh")
    assert status == 0
    assert "# it is so already" in out
    assert "echo" not in out
    assert not (tmp_path / "undo.sh").exists()


def test_a_failure_leaves_no_undo_file(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    four_queues(tree)
    monkeypatch.setattr(_locality, "_write", failing_at(2, errno.EACCES))
    undo = tmp_path / "undo.sh"
    assert main(["locality", "eth0", "--root", str(tree.root), "--undo-file", str(undo)]) == 1
    assert "run it as root" in capsys.readouterr().err
    assert not undo.exists()


def test_errors_are_a_line_and_status_1(tree: Tree) -> None:
    four_queues(tree)
    for arguments in (["lo"], ["nothing"], ["eth0", "--cpus", "x"], ["eth0", "--cpus", "9"]):
        status, out, err = locality(tree, *arguments)
        assert (status, out) == (1, "")
        assert err.startswith("gain-trio: ")
        assert err.count("\n") == 1
    tree.file("/proc/irq/24/smp_affinity_list").unlink()
    assert "24/smp_affinity_list: No such file" in locality(tree, "eth0")[2]


@pytest.mark.skipif(sys.platform != "linux", reason="needs /sys")
def test_the_loopback_of_this_machine_has_no_queues_to_give_away() -> None:
    status, out, err = run("-m", "gain_trio", "locality", "lo", "--dry-run")
    assert (status, out) == (1, "")
    assert "lo is virtual" in err
