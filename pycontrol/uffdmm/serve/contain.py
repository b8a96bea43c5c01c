# SPDX-License-Identifier: GPL-2.0-or-later
"""A policy on a leash.

Theory of operation.  A policy is somebody else's code.  It runs in a thread of its own, with a
deadline; the daemon goes on when that has passed, and does not ask again before the late call has
ended (a thread cannot be killed, and two calls of one object at once would be worse).  Its answer
is checked number by number before anything is believed: known VMs, whole numbers between the VM's
bounds, the sum within the budget.  Whatever is wrong costs a :class:`PolicyError` that names the
policy; the caller then leaves the limits as they are.
"""

import math
import queue
import threading

import numpy as np

from ..policies import Decision, HostView, Policy, PolicyError

PAGE = 4096


class Leash:
    """Asks one policy.

    :param name: as messages call it
    :param deadline: seconds that an answer may take
    """

    def __init__(self, name: str, policy: Policy, deadline: float) -> None:
        self.name = name
        self._policy = policy
        self._deadline = deadline
        self._busy: threading.Thread | None = None

    def ask(self, host: HostView) -> Decision:
        """The policy's decision, checked; limits in whole pages.

        :raise PolicyError: it raised, was late or answered nonsense
        """
        if self._busy is not None and self._busy.is_alive():
            raise PolicyError(f"policy '{self.name}' still works on an earlier sample")
        answers: queue.SimpleQueue[object] = queue.SimpleQueue()

        def work() -> None:
            try:
                answers.put(self._policy.decide(host))
            except BaseException as error:  # noqa: BLE001  (told by the one who asked)
                answers.put(error)

        # A daemon thread: one that never returns must not keep the program from ending.
        self._busy = threading.Thread(target=work, name=f"policy {self.name}", daemon=True)
        self._busy.start()
        try:
            answer = answers.get(timeout=self._deadline)
        except queue.Empty:
            raise PolicyError(
                f"policy '{self.name}' did not answer within {self._deadline:g} s"
            ) from None
        if isinstance(answer, BaseException):
            raise PolicyError(f"policy '{self.name}' raised {answer!r}") from answer
        return checked(self.name, host, answer)


def checked(name: str, host: HostView, answer: object) -> Decision:
    """The answer, if it is one.

    :raise PolicyError: it is not
    """
    if not isinstance(answer, Decision):
        raise PolicyError(f"policy '{name}' answered {answer!r}, which is no Decision")
    try:
        limits = {
            vm: _bytes(name, host, vm, size, "limit") & -PAGE for vm, size in answer.limits.items()
        }
        prefetch = {
            vm: _bytes(name, host, vm, size, "prefetch") for vm, size in answer.prefetch.items()
        }
        tiers = {
            vm: {tier: _bytes(name, host, vm, size, "tier") for tier, size in bounds.items()}
            for vm, bounds in answer.tier_bytes.items()
        }
    except PolicyError:
        raise
    except Exception as error:
        raise PolicyError(f"policy '{name}' answered what cannot be read: {error!r}") from error
    for vm, limit in limits.items():
        view = host.vms[vm]
        if not view.min_bytes & -PAGE <= limit <= view.max_bytes:
            raise PolicyError(
                f"policy '{name}' sets a limit of {limit} bytes for VM '{vm}', whose bounds are"
                f" {view.min_bytes} and {view.max_bytes}"
            )
    total = sum(limits.get(vm, view.limit_bytes) for vm, view in host.vms.items())
    if limits and total > host.budget_bytes:
        raise PolicyError(
            f"policy '{name}' gives away {total} bytes, the budget is {host.budget_bytes}"
        )
    return Decision(limits, prefetch, tiers)


def _bytes(name: str, host: HostView, vm: str, size: object, what: str) -> int:
    if vm not in host.vms:
        raise PolicyError(f"policy '{name}' names VM '{vm}', which there is not")
    if (
        isinstance(size, bool)
        or not isinstance(size, int | float | np.integer | np.floating)
        or not math.isfinite(size)
        or size < 0
    ):
        raise PolicyError(f"policy '{name}' answered a {what} of {size!r} for VM '{vm}'")
    return int(size)
