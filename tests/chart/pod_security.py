"""Pod Security Standards, profile "restricted", which holds all of "baseline".

Source: Kubernetes documentation, "Pod Security Standards", whose controls have these names
(concepts/security/pod-security-standards).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Pod = Mapping[str, Any]

_VOLUMES = frozenset(
    [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ]
)
_SYSCTLS = frozenset(
    [
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.ping_group_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
    ]
)
_SELINUX_TYPES = frozenset(
    ["", None, "container_t", "container_init_t", "container_kvm_t", "container_engine_t"]
)
_SECCOMP = frozenset(["RuntimeDefault", "Localhost"])


def containers(pod: Pod) -> list[Mapping[str, Any]]:
    return [
        *pod.get("initContainers", []),
        *pod.get("containers", []),
        *pod.get("ephemeralContainers", []),
    ]


def _contexts(pod: Pod) -> Iterator[Mapping[str, Any]]:
    yield pod.get("securityContext") or {}
    yield from _own_contexts(pod)


def _own_contexts(pod: Pod) -> Iterator[Mapping[str, Any]]:
    for container in containers(pod):
        yield container.get("securityContext") or {}


def _seccomp(pod: Pod) -> bool:
    whole = (pod.get("securityContext") or {}).get("seccompProfile", {}).get("type")
    own = [context.get("seccompProfile", {}).get("type") for context in _own_contexts(pod)]
    return all(kind in _SECCOMP or (kind is None and whole in _SECCOMP) for kind in own)


def _non_root(pod: Pod) -> bool:
    whole = (pod.get("securityContext") or {}).get("runAsNonRoot")
    return all(context.get("runAsNonRoot", whole) is True for context in _own_contexts(pod))


def _capabilities(pod: Pod) -> bool:
    found = [context.get("capabilities") or {} for context in _own_contexts(pod)]
    return all(
        "ALL" in each.get("drop", []) and set(each.get("add", [])) <= {"NET_BIND_SERVICE"}
        for each in found
    )


def _ports(pod: Pod) -> bool:
    return all(
        not port.get("hostPort") for each in containers(pod) for port in each.get("ports", [])
    )


def _selinux(pod: Pod) -> bool:
    options = [context.get("seLinuxOptions") or {} for context in _contexts(pod)]
    return all(
        each.get("type") in _SELINUX_TYPES and not each.get("user") and not each.get("role")
        for each in options
    )


def _apparmor(pod: Pod) -> bool:
    kinds = [(context.get("appArmorProfile") or {}).get("type") for context in _contexts(pod)]
    return all(kind in (None, "RuntimeDefault", "Localhost") for kind in kinds)


def _sysctls(pod: Pod) -> bool:
    given = (pod.get("securityContext") or {}).get("sysctls", [])
    return all(each["name"] in _SYSCTLS for each in given)


CONTROLS: dict[str, Callable[[Pod], bool]] = {
    # baseline
    "HostProcess": lambda pod: (
        not any(
            (context.get("windowsOptions") or {}).get("hostProcess") for context in _contexts(pod)
        )
    ),
    "Host Namespaces": lambda pod: (
        not any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))
    ),
    "Privileged Containers": lambda pod: (
        not any(context.get("privileged") for context in _own_contexts(pod))
    ),
    "Host Ports": _ports,
    "AppArmor": _apparmor,
    "SELinux": _selinux,
    "/proc Mount Type": lambda pod: all(
        context.get("procMount") in (None, "Default") for context in _own_contexts(pod)
    ),
    "Sysctls": _sysctls,
    # restricted
    "Volume Types": lambda pod: all(
        set(volume) - {"name"} <= _VOLUMES for volume in pod.get("volumes", [])
    ),
    "Privilege Escalation": lambda pod: all(
        context.get("allowPrivilegeEscalation") is False for context in _own_contexts(pod)
    ),
    "Running as Non-root": _non_root,
    "Running as Non-root user": lambda pod: all(
        context.get("runAsUser") != 0 for context in _contexts(pod)
    ),
    "Seccomp": _seccomp,
    "Capabilities": _capabilities,
}


def broken_controls(pod: Pod) -> list[str]:
    """The controls that a pod's spec does not meet."""
    return [name for name, is_met in CONTROLS.items() if not is_met(pod)]
