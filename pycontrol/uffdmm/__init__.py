# SPDX-License-Identifier: GPL-2.0-or-later
"""Control and observe the uffdmm manager from Python.

The manager (``uffdmm-manager``) owns the memory of QEMU virtual machines and keeps each inside its
limit.  This package talks to its socket; nothing here is ever needed to serve a fault.

A first look at a running manager::

    from uffdmm import Manager

    manager = Manager("/run/uffdmm/manager.sock")
    for entry in manager.list_vms():
        with manager.open_vm(entry.vm_name) as vm:
            stats = vm.statistics()
            print(entry.vm_name, stats.resident_bytes, stats.fault_hist.percentile(0.99))

and a change of policy, which returns what is in force from now on::

    with manager.open_vm("demo") as vm:
        policy = vm.set_policy(limit_bytes=512 << 20)

An open VM keeps one connection and one read-only mapping of the statistics that its worker writes,
so a snapshot costs no message.

=============== ========================================================================
module          concern
=============== ========================================================================
``wire``        messages and descriptors over the socket
``client``      the manager and its VMs as objects
``stats``       the statistics pages: typed snapshots, histograms
``ages``        how long ago resident pages were in use
``watch``       all VMs of a manager, looked at again and again
``events``      changes of state, as the difference of two looks
``metrics``     the statistics for Prometheus
``pagetable``   states and ages of all pages of a region, as numpy views
``policies``    who gets how much of the host's budget
``serve``       the control plane: samples, policies, limits
``trace``       which memory a VM used: recorded, made up, as a file
``simulate``    policies against traces
``sizes``       ``512M`` to bytes and back
``durations``   ``30s`` to nanoseconds and back
``config``      ``uffdmm.toml``: the model, reading it, the manager's command line from it
``hostfacts``   what this host offers, as found by the C probes and in /proc
``hostcheck``   what those findings mean: PASS, WARN, FAIL and the remedy
``selftest``    the eviction race on this host's kernel
``cli``         the command ``uffdmm``
``_native``     cffi module: constants, structures and probes from the C headers
=============== ========================================================================

Errors are one tree; catch the widest that you can handle::

    UffdmmError
     +-- SizeError            a size that cannot be understood
     +-- DurationError        a time that cannot be understood
     +-- AddressError         no address and port to listen on
     +-- OptionsError         options that do not go together
     +-- ConfigError          a configuration that cannot be used
     +-- VmNameError          a VM name that the wire format cannot carry
     +-- ConnectError         the manager cannot be reached
     |    +-- LinkLostError   it closed the connection or did not answer in time
     +-- ProtocolError        the peer sent what the protocol does not allow
     |    +-- VersionError    no common version of the protocol
     +-- ManagerError         the manager answered with an error
     |    +-- NoSuchVmError   it serves no VM of that name
     +-- TraceError           a trace that cannot be used, or cannot be made
     +-- PlotError            a picture that cannot be drawn
     +-- NoSuchTierError      the VM has no tier of that name
     +-- SelfTestError        the self-test could not run on this host
"""

from importlib.metadata import version

from .client import Manager, Policy, VirtualMachine, VmEntry
from .errors import (
    ConfigError,
    ConnectError,
    DurationError,
    LinkLostError,
    ManagerError,
    NoSuchTierError,
    NoSuchVmError,
    OptionsError,
    ProtocolError,
    SelfTestError,
    SizeError,
    UffdmmError,
    VersionError,
    VmNameError,
)
from .stats import Histogram, Stats, TierState, TierStats, TierType, WorkerState

__version__ = version("uffdmm")

__all__ = [
    "ConfigError",
    "ConnectError",
    "DurationError",
    "Histogram",
    "LinkLostError",
    "Manager",
    "ManagerError",
    "NoSuchTierError",
    "NoSuchVmError",
    "OptionsError",
    "Policy",
    "ProtocolError",
    "SelfTestError",
    "SizeError",
    "Stats",
    "TierState",
    "TierStats",
    "TierType",
    "UffdmmError",
    "VersionError",
    "VirtualMachine",
    "VmEntry",
    "VmNameError",
    "WorkerState",
    "__version__",
]
