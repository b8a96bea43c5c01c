# SPDX-License-Identifier: GPL-2.0-or-later
"""What a destination, or a host, refuses before anything happens; the guest notices nothing."""

import ssl
from pathlib import Path
from typing import Any

from migration_test import MIB, RAM, SECONDS, VM, Host, MigrationTest

from uffdmm_harness.certificates import Authority
from uffdmm_harness.conversation import Conversation
from uffdmm_harness.hosts import ControlPlane
from uffdmm_harness.machine import external_memory


class Refused(MigrationTest):
    """One guest that stays; destinations that do not fit.

    :avocado: tags=machine:q35
    """

    def setUp(self) -> None:
        super().setUp()
        self.here, self.there = self.host("a"), self.host("b")
        self.guest_here = self.source(self.here)

    def refused(self, *words: str, target: str = "", plane: ControlPlane | None = None) -> str:
        """Migrate, which must fail with these words; the guest stays and is whole."""
        text = (plane or self.here.plane).refused(VM, "--to", target or self.there.plane.target)
        self.log.info("refused: %s", text)
        self.assert_contains(text, *words)
        self.assertTrue(self.runs(self.guest_here))
        return text

    def test_no_such_vm(self) -> None:
        self.refused("stage 'offer'", f"no VM '{VM}' waits", "the guest runs here")
        self.assert_verifies(self.guest_here)
        self.assert_moves_after_all(self.here, self.there, self.guest_here)

    def test_vm_of_that_name_runs_there(self) -> None:
        other = self.host("c", tiers=("near=pool,capacity=128M",))
        running = self.guest(
            self.config(other.manager.socket, ram=RAM, arguments=other.plane.monitor(VM))
        ).boot()
        self.refused(
            *("stage 'offer'", "exists here already", "running"), target=other.plane.target
        )
        self.assertTrue(self.runs(running))
        self.assert_verifies(self.guest_here)

    def test_other_memory(self) -> None:
        """Another size, other ids, larger pages: each with its figures, and then as it should."""
        sized = self.destination(self.there, ram=RAM + 16 * MIB)
        self.refused("stage 'offer'", f"has {RAM} bytes", f"{RAM + 16 * MIB} bytes")
        sized.kill()
        self.gone(self.there)
        named = self.destination(
            self.there,
            memory="ram0",
            objects=[external_memory(RAM, self.there.manager.socket, ident="ram0")],
        )
        self.refused("stage 'offer'", "mem0 there and", "ram0 here", "the same ids")
        named.kill()
        self.gone(self.there)
        self.assert_verifies(self.guest_here)
        self.assert_moves_after_all(self.here, self.there, self.guest_here)

    def with_certificates(self, folder: Path) -> ControlPlane:
        """A control plane for the source's manager that has other certificates, not running."""
        plane = ControlPlane(self.folder / folder.name, self.here.manager.socket, folder)
        monitor = self.here.plane.folder / f"{VM}.qmp"
        (plane.folder / f"{VM}.qmp").symlink_to(monitor)
        return plane

    def test_certificates(self) -> None:
        """None, of another authority, of a name that may not, and a key that all can read."""
        waiting = self.destination(self.there)
        empty = self.folder / "no-pki"
        empty.mkdir()
        self.refused(
            *("stage 'connect'", "no certificate file", "ca-cert.pem"),
            plane=self.with_certificates(empty),
        )
        foreign = Authority(self.folder / "foreign", "foreign").host(
            self.folder / "foreign-pki", "127.0.0.1"
        )
        self.refused(
            *("stage 'connect'", "is not accepted", "one authority"),
            plane=self.with_certificates(foreign),
        )
        open_key = self.authority.host(self.folder / "open-pki", "127.0.0.1")
        (open_key / "client-key.pem").chmod(0o644)
        self.refused(
            *("stage 'connect'", "can be read by others", "chmod 600"),
            plane=self.with_certificates(open_key),
        )
        strict = Host(
            "strict",
            self.there.manager,
            self.plane("strict", self.there.manager, more='allow = ["elsewhere.example"]'),
        )
        self.refused(
            *("stage 'connect'", "a certificate of 127.0.0.1, localhost", "allow"),
            target=strict.plane.target,
        )
        renamed = self.exits.enter_context(
            ControlPlane(
                self.folder / "renamed",
                self.there.manager.socket,
                self.authority.host(self.folder / "renamed-pki", "elsewhere.example"),
            )
        )
        self.refused(*("stage 'connect'", "is not accepted", "--tls-name"), target=renamed.target)
        by_name = ("--to", renamed.target, "--tls-name", "elsewhere.example")
        self.assert_contains(self.here.plane.refused(VM, *by_name), "stage 'offer'", "monitor")
        # Who knows the authority but has no certificate is not heard.
        bare = ssl.create_default_context(cafile=str(self.authority.certificate))
        with Conversation("127.0.0.1", self.there.plane.port, bare) as stranger:
            self.assertIsNone(stranger.greeted())
        self.assertEqual(waiting.qmp("query-status")["status"], "inmigrate")
        self.assert_verifies(self.guest_here)
        self.here.plane.migrated(VM, "--to", self.there.plane.target)
        self.assert_runs_only_on(waiting, self.guest_here)

    def credentials(self) -> ssl.SSLContext:
        """What the source has."""
        context = ssl.create_default_context(cafile=str(self.authority.certificate))
        pki = self.here.plane.folder / "pki"
        context.load_cert_chain(pki / "client-cert.pem", pki / "client-key.pem")
        return context

    def offer(self, **changes: Any) -> dict[str, Any]:
        """What a source says first."""
        return {
            "type": "offer",
            "vm": VM,
            "session": 4711,
            "regions": [{"name": "mem0", "size": RAM, "page_size": 4096}],
            "tier": None,
            "channels": 0,
            "direct": False,
            "dry_run": False,
            **changes,
        }

    def test_channels_through_tls(self) -> None:
        """They cannot go there; said before anything is begun, so QEMU can still receive."""
        waiting = self.destination(self.there)
        with Conversation("127.0.0.1", self.there.plane.port, self.credentials()) as source:
            source.greet()
            answer = source.ask(self.offer(channels=4))
            self.assert_contains(str(answer), "refuse", "cannot go through TLS")
        self.here.plane.migrated(VM, "--to", self.there.plane.target)
        self.assert_runs_only_on(waiting, self.guest_here)

    def test_session_number_again(self) -> None:
        """A session that is under way, or over, cannot be had a second time."""
        waiting = self.destination(self.there)
        context, offer = self.credentials(), self.offer()
        port = self.there.plane.port
        with Conversation("127.0.0.1", port, context) as first:
            first.greet()
            self.assertEqual(first.ask(offer)["type"], "accept")
            with Conversation("127.0.0.1", port, context) as second:
                second.greet()
                answer = second.ask(offer)
                self.assert_contains(str(answer), "refuse", "0x1267 is under way already")
            with Conversation("127.0.0.1", port, context) as third:
                third.greet()
                answer = third.ask({"type": "resume", "vm": VM, "session": 4711})
                self.assert_contains(str(answer), "refuse", "0x1267 is under way already")
            # It may not say that the guest is to run, before anything has come.
            answer = first.ask({"type": "released", "epoch": 1, "run": True})
            self.assert_contains(str(answer), "refuse", "must not run here")
        self.wait_until(lambda: waiting.ended, "the end of QEMU on the destination")
        with Conversation("127.0.0.1", port, context) as last:
            last.greet()
            answer = last.ask({"type": "resume", "vm": VM, "session": 4711})
            self.assertEqual(answer["type"], "refuse", str(answer))
        self.gone(self.there)
        self.assert_moves_after_all(self.here, self.there, self.guest_here)

    def test_second_source_of_the_same_vm(self) -> None:
        """Its QEMU can receive once: whoever comes second is refused, and the first goes on."""
        other = self.host("c", tiers=("near=pool,capacity=128M",))
        twin = self.source(other)
        waiting = self.destination(self.there)
        slower = ("--to", self.there.plane.target, "--bandwidth", "4M")
        process = self.moving(self.here, self.guest_here, *slower)
        text = other.plane.refused(VM, "--to", self.there.plane.target)
        self.assert_contains(text, "is being received here already", "the guest runs here")
        self.guest_here.qmp("migrate-set-parameters", max_bandwidth=1 << 30)
        out, err = process.communicate(timeout=SECONDS)
        self.assertEqual(process.returncode, 0, f"{out}{err}")
        self.assert_runs_only_on(waiting, self.guest_here)
        self.assertTrue(self.runs(twin))
