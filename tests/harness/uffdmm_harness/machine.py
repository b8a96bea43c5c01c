# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line of a QEMU machine, as data that tests change before it is started."""

from dataclasses import dataclass, field
from pathlib import Path

from . import places

MIB = 1 << 20
GIB = 1 << 30


def firmware_arguments() -> list[str]:
    """Where the firmware of Debian's packages is."""
    return [word for folder in places.FIRMWARE for word in ("-L", str(folder))]


def external_memory(
    size: int, socket: Path, *, ident: str = "mem0", extra: str = "", vm_name: str | None = None
) -> str:
    """A ``memory-backend-external`` as ``-object`` takes it."""
    name = f",vm-name={vm_name}" if vm_name else ""
    return f"memory-backend-external,id={ident},size={size},socket={socket}{name}{extra}"


@dataclass(slots=True)
class MachineConfig:
    """One machine.

    ``objects`` are made first; ``memory`` names the one that becomes the machine's RAM (None: QEMU
    allocates it itself, anonymous, as users without uffdmm have it).
    """

    accel: str
    ram: int = 256 * MIB
    machine: str = "q35"
    objects: list[str] = field(default_factory=list)
    memory: str | None = None
    cpus: int = 1
    memory_slots: str = ""  # for hot-plug: "slots=4,maxmem=2G"
    arguments: list[str] = field(default_factory=list)
    kernel_arguments: str = ""
    name: str | None = None

    @property
    def machine_type(self) -> str:
        """``q35`` of ``q35,nvdimm=on``."""
        return self.machine.split(",", 1)[0]

    def command(self, qmp: Path, port: Path, console: Path) -> list[str]:
        """All arguments after the binary."""
        image = places.guest_image()
        machine = self.machine
        kernel_arguments = self.kernel_arguments
        if self.machine_type == "microvm":
            # With ACPI the interrupt of its timer does not arrive, and Linux halts whenever it
            # fails to calibrate the TSC, as it does under TCG on a busy host.
            machine += ",isa-serial=on,acpi=off,pic=on,pit=on,rtc=on"
            kernel_arguments += " reboot=t"
        if self.memory:
            machine += f",memory-backend={self.memory}"
        size = f"size={self.ram // MIB}M"
        if self.memory_slots:
            size += f",{self.memory_slots}"
        command = [
            *("-machine", machine, "-accel", self.accel, "-m", size, "-smp", str(self.cpus)),
            *("-nodefaults", "-no-reboot", "-display", "none", *firmware_arguments()),
            *("-kernel", str(image.kernel), "-initrd", str(image.initrd)),
            # On a busy host the timer's interrupts come late; the kernel, which counts them as it
            # boots, would give the timer up and wait for ever.
            # Hot-plugged memory is put to use by the kernel, as there is no udev to do it, and as
            # movable, so that it can be unplugged again.
            "-append",
            "console=ttyS0 quiet panic=-1 no_timer_check memhp_default_state=online_movable "
            + kernel_arguments,
            *("-chardev", f"socket,id=monitor,path={qmp},server=on,wait=off"),
            *("-mon", "chardev=monitor,mode=control"),
            *("-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"),
            *("-chardev", f"socket,id=port,path={port},server=on,wait=off"),
            # A second -serial would do on pc and q35; microvm knows only this form.
            *("-device", "isa-serial,chardev=port,index=1"),
        ]
        if self.name:
            command += ["-name", self.name]
        for item in self.objects:
            command += ["-object", item]
        return command + self.arguments
