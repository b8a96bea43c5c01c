# SPDX-License-Identifier: GPL-2.0-or-later
"""The places where a memory-backend-external can stand: machines, NUMA nodes, pc-dimms, shards."""

from uffdmm_test import LIMIT, MIB, RAM, SLACK, VM, WORKING_SET, UffdmmTest

from uffdmm_harness.machine import external_memory


class Machines(UffdmmTest):
    """The same small workload on each machine type."""

    def check_overcommitted(self, machine: str, extra: str = "", **arguments: str) -> None:
        manager = self.manager()
        config = self.config(manager.socket, machine=machine, **arguments)
        config.objects[0] += extra
        guest = self.guest(config).boot()
        with self.resident_sampler(guest) as resident:
            guest.port.fill(WORKING_SET, seed=21)
            guest.port.run("random", 2)
            guest.port.run("hot", 2)
            result = guest.port.verify()
        self.assertTrue(result.verified, str(result))
        self.assertLessEqual(resident.maximum, LIMIT + SLACK)
        self.assertGreater(self.statistics(manager).faults_store, 0)
        self.assertEqual(guest.power_off(), 0)

    def test_q35(self) -> None:
        """
        :avocado: tags=machine:q35
        """
        self.check_overcommitted("q35")

    def test_pc(self) -> None:
        """
        :avocado: tags=machine:pc
        """
        self.check_overcommitted("pc")

    def test_microvm(self) -> None:
        """
        :avocado: tags=machine:microvm
        """
        self.check_overcommitted("microvm")

    def test_four_shards(self) -> None:
        """
        :avocado: tags=machine:q35
        """
        self.check_overcommitted("q35", extra=",shards=4")


class Backends(UffdmmTest):
    """Several backends of one VM share its worker and its limit.

    :avocado: tags=machine:q35
    """

    def test_two_numa_nodes(self) -> None:
        manager = self.manager()
        config = self.config(
            manager.socket,
            memory="",  # the nodes have it
            cpus=2,
            objects=[
                external_memory(RAM // 2, manager.socket, ident="node0"),
                external_memory(RAM // 2, manager.socket, ident="node1"),
            ],
            arguments=["-numa", "node,cpus=0,memdev=node0", "-numa", "node,cpus=1,memdev=node1"],
        )
        guest = self.guest(config).boot()
        guest.port.fill(WORKING_SET, seed=22)
        guest.port.run("random", 3)
        self.assertTrue(guest.port.verify().verified)
        stats = self.statistics(manager)
        self.assertEqual(stats.nr_regions, 2)
        self.assertEqual(stats.ram_bytes, RAM)
        self.assertLessEqual(stats.resident_max_bytes, LIMIT + SLACK)
        self.assertEqual([vm.vm_name for vm in manager.client.list_vms()], [VM])
        (vm,) = guest.qmp("uffdmm-query")
        self.assertEqual({item["id"] for item in vm["backends"]}, {"node0", "node1"})

    def test_hotplugged_dimm_is_used_and_unplugged(self) -> None:
        manager = self.manager()
        guest = self.guest(self.config(manager.socket, memory_slots="slots=2,maxmem=1G")).boot()
        before = int(guest.port.memory()["total_bytes"])
        guest.qmp(
            "object-add",
            qom_type="memory-backend-external",
            id="mem1",
            size=RAM,
            socket=str(manager.socket),
        )
        guest.qmp("device_add", driver="pc-dimm", id="dimm1", memdev="mem1")
        self.wait_until(
            lambda: int(guest.port.memory()["total_bytes"]) >= before + RAM - MIB,
            "the guest to use the new memory",
        )
        self.assertEqual(self.statistics(manager).nr_regions, 2)
        # More than the machine began with: part of it must lie in the new memory.
        guest.port.fill(RAM + 64 * MIB, seed=23)
        guest.port.run("random", 3)
        self.assertTrue(guest.port.verify().verified)
        self.assertLessEqual(self.statistics(manager).resident_max_bytes, LIMIT + SLACK)

        guest.port.ask("release", {"released"}, 20)
        guest.port.fill(100 * MIB, seed=24)
        guest.qmp("device_del", id="dimm1")
        self.wait_until(
            lambda: (
                not any(item["data"]["id"] == "dimm1" for item in guest.qmp("query-memory-devices"))
            ),
            "the guest to give the memory back",
            timeout=40,
        )
        guest.qmp("object-del", id="mem1")
        self.wait_until(lambda: self.statistics(manager).nr_regions == 1, "detaching")
        guest.port.run("random", 2)
        self.assertTrue(guest.port.verify().verified)
