# SPDX-License-Identifier: GPL-2.0-or-later
"""What cannot work together with memory-backend-external is refused, by name, at start or later."""

import os
from collections.abc import Callable

from uffdmm_test import MIB, RAM, UffdmmTest

from uffdmm_harness.guest import Guest, QemuEnded
from uffdmm_harness.machine import MachineConfig, external_memory

BACKEND = "memory-backend-external"


class RefusedBackend(UffdmmTest):
    """Properties of the backend, and settings of the whole of QEMU, that contradict it."""

    def refused(self, *words: str, extra: str = "", arguments: list[str] | None = None) -> None:
        manager = self.manager()
        config = self.config(manager.socket, arguments=["-S", *(arguments or [])])
        config.objects[0] += extra
        self.assert_refused_at_start(config, *words)
        self.assertEqual(manager.client.list_vms(), [])

    def test_share_off(self) -> None:
        self.refused("share=off", BACKEND, extra=",share=off")

    def test_prealloc(self) -> None:
        self.refused("prealloc", BACKEND, extra=",prealloc=on")

    def test_prealloc_of_all_memory(self) -> None:
        self.refused("prealloc", BACKEND, arguments=["-mem-prealloc"])

    def test_mem_lock(self) -> None:
        self.refused("mem-lock", BACKEND, arguments=["-overcommit", "mem-lock=on"])

    def test_mem_lock_on_fault(self) -> None:
        self.refused("mem-lock", BACKEND, arguments=["-overcommit", "mem-lock=on-fault"])

    def test_nested_virtualization(self) -> None:
        """KVM pins pages for a nested hypervisor; TCG does not, and may have it."""
        manager = self.manager()
        config = self.config(manager.socket, arguments=["-S", "-cpu", "qemu64,svm=on"])
        config.accel = "tcg"
        guest = self.guest(config)
        guest.launch()
        guest.kill()
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            self.cancel("/dev/kvm cannot be opened")
        plain = self.guest(self.config(None, arguments=["-S", "-cpu", "qemu64,svm=on,enforce"]))
        plain.config.accel = "kvm"
        try:
            plain.launch()
        except QemuEnded as ended:
            self.cancel(f"KVM of this host offers no nested virtualization: {ended.stderr}")
        config.accel, config.name = "kvm", "vm2"
        self.assert_refused_at_start(config, "nested", BACKEND)

    def test_no_socket(self) -> None:
        manager = self.manager()
        config = self.config(manager.socket)
        config.objects = [f"{BACKEND},id=mem0,size={RAM}"]
        self.assert_refused_at_start(config, "socket")

    def test_nine_shards(self) -> None:
        self.refused("shards", "9", extra=",shards=9")

    def test_prealloc_switched_on_later(self) -> None:
        manager = self.manager()
        guest = self.guest(self.config(manager.socket, arguments=["-S"]))
        guest.launch()
        self.assert_qmp_refuses(
            guest, "qom-set", "prealloc", path="/objects/mem0", property="prealloc", value=True
        )


class RefusedDevices(UffdmmTest):
    """Devices that pin guest memory, or map it in another process."""

    def machine(self) -> MachineConfig:
        # pc, because the root bus of q35 takes no hot-plug.
        return self.config(self.manager().socket, machine="pc", arguments=["-S"])

    def need(self, device: str) -> None:
        if not self.has_device(device):
            self.cancel(f"this QEMU is built without {device}")

    def check(
        self, device: str, arguments: list[str], prepare: Callable[[Guest], None] | None, word: str
    ) -> None:
        """Refused when plugged into a machine that runs, and when there from the start."""
        name = device.split(",", 1)[0]
        self.need(name)
        config = self.machine()
        guest = self.guest(config)
        guest.launch()
        if prepare:
            prepare(guest)
        properties: dict[str, str | bool] = {"driver": name}
        for item in device.split(",")[1:]:
            key, value = item.split("=", 1)
            properties[key] = value == "on" if value in {"on", "off"} else value
        self.assert_qmp_refuses(guest, "device_add", word, BACKEND, **properties)
        self.assertEqual(guest.qmp("query-status")["status"], "prelaunch")
        guest.kill()

        self.check_at_start(config, [*arguments, "-device", device], word)

    def check_at_start(self, config: MachineConfig, arguments: list[str], word: str) -> None:
        config.name = "vm2"  # the worker of an earlier VM may still be on its way out
        config.arguments += arguments
        self.assert_refused_at_start(config, word, BACKEND)

    def add_chardev(self, guest: Guest) -> None:
        backend = {
            "type": "socket",
            "data": {
                "addr": {"type": "unix", "data": {"path": f"{self.folder}/vhost.sock"}},
                "server": True,
                "wait": False,
            },
        }
        guest.qmp("chardev-add", id="vhost", backend=backend)

    def check_vhost_user(self, device: str) -> None:
        chardev = f"socket,id=vhost,path={self.folder}/vhost.sock,server=on,wait=off"
        self.check(f"{device},chardev=vhost", ["-chardev", chardev], self.add_chardev, "vhost-user")

    def test_vhost_user_blk(self) -> None:
        self.check_vhost_user("vhost-user-blk-pci")

    def test_vhost_user_scsi(self) -> None:
        self.check_vhost_user("vhost-user-scsi-pci")

    def test_vhost_user_fs(self) -> None:
        self.need("vhost-user-fs-pci")
        self.check_vhost_user("vhost-user-fs-pci,tag=fs")

    def test_vhost_user_net(self) -> None:
        # At start the net device comes before the memory, and would wait for its back end.
        guest = self.guest(self.machine())
        guest.launch()
        self.add_chardev(guest)
        self.assert_qmp_refuses(guest, "netdev_add", type="vhost-user", id="net0", chardev="vhost")
        # Of this device QEMU tells the monitor only that it failed; the reason is in its log.
        self.assert_contains(guest.stderr, "vhost-user", BACKEND)

    def test_vhost_scsi(self) -> None:
        self.check("vhost-scsi-pci,wwpn=naa.500140599ad36046", [], None, "vhost-scsi")

    def test_ivshmem_on_external_memory(self) -> None:
        self.need("ivshmem-plain")
        manager = self.manager()
        config = self.config(manager.socket, arguments=["-S"])
        shared = external_memory(16 * MIB, manager.socket, ident="shared")
        config.objects.append(shared)
        config.arguments += ["-device", "ivshmem-plain,memdev=shared"]
        self.assert_refused_at_start(config, "ivshmem", BACKEND)

    def test_virtio_gpu_blob(self) -> None:
        self.need("virtio-gpu-pci")
        self.check_at_start(self.machine(), ["-device", "virtio-gpu-pci,blob=on"], "blob")


class RefusedMigration(UffdmmTest):
    """Kinds of migration that need userfaultfd themselves, or go past it."""

    def refused(self, capability: str) -> None:
        manager = self.manager()
        guest = self.guest(self.config(manager.socket, arguments=["-S"]))
        guest.launch()
        self.assert_qmp_refuses(
            guest,
            "migrate-set-capabilities",
            capability,
            BACKEND,
            capabilities=[{"capability": capability, "state": True}],
        )
        states = guest.qmp("query-migrate-capabilities")
        self.assertIn({"capability": capability, "state": False}, states)
        guest.kill()

    def refused_at_start(self, capability: str) -> None:
        manager = self.manager()
        config = self.config(
            manager.socket, arguments=["-S", "-global", f"migration.{capability}=on"]
        )
        self.assert_refused_at_start(config, BACKEND)

    def test_postcopy_ram(self) -> None:
        self.refused("postcopy-ram")

    def test_postcopy_ram_at_start(self) -> None:
        self.refused_at_start("x-postcopy-ram")

    def test_background_snapshot(self) -> None:
        self.refused("background-snapshot")

    def test_colo(self) -> None:
        self.refused("x-colo")

    def test_ignore_shared(self) -> None:
        self.refused("x-ignore-shared")

    def cpr_refused(self, mode: str, *channels: str) -> None:
        manager = self.manager()
        config = self.config(manager.socket, machine="q35,aux-ram-share=on", arguments=["-S"])
        guest = self.guest(config)
        guest.launch()
        guest.qmp("migrate-set-parameters", mode=mode)
        addresses = [
            {
                "channel-type": channel,
                "addr": {
                    "transport": "socket",
                    "type": "unix",
                    "path": str(self.folder / channel),
                },
            }
            for channel in channels
        ]
        self.assert_qmp_refuses(guest, "migrate", BACKEND, channels=addresses)

    def test_cpr_reboot(self) -> None:
        self.cpr_refused("cpr-reboot", "main")

    def test_cpr_transfer(self) -> None:
        self.cpr_refused("cpr-transfer", "main", "cpr")

    def test_direct_io(self) -> None:
        manager = self.manager()
        guest = self.guest(self.config(manager.socket, arguments=["-S"]))
        guest.launch()
        self.assert_qmp_refuses(
            guest, "migrate-set-parameters", "direct-io", BACKEND, direct_io=True
        )

    def test_hotplugged_backend_meets_postcopy(self) -> None:
        """The other way round: what is refused is on already when the backend comes."""
        manager = self.manager()
        config = self.config(None, arguments=["-S"], memory_slots="slots=1,maxmem=1G")
        guest = self.guest(config)
        guest.launch()
        guest.qmp(
            "migrate-set-capabilities",
            capabilities=[{"capability": "background-snapshot", "state": True}],
        )
        self.assert_qmp_refuses(
            guest,
            "object-add",
            "background-snapshot",
            BACKEND,
            qom_type=BACKEND,
            id="mem1",
            size=RAM,
            socket=str(manager.socket),
        )
        self.assertEqual(manager.client.list_vms(), [])
