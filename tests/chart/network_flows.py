"""What NetworkPolicies let through: a pod that a policy selects sends and takes only what some
policy allows. Source: Kubernetes documentation, "Network Policies"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any


@dataclass(frozen=True)
class End:
    """A pod, or an address outside of the cluster."""

    labels: Mapping[str, str] = field(default_factory=dict)
    namespace: Mapping[str, str] = field(default_factory=dict)  # its labels
    ports: Mapping[str, int] = field(default_factory=dict)  # by name
    address: str | None = None


def is_allowed(policies: Iterable[Mapping[str, Any]], source: End, target: End, port: int) -> bool:
    """Whether TCP to a port gets through, sent by `source` and taken by `target`."""
    found = list(policies)
    return _passes(found, source, target, target, port, "Egress") and _passes(
        found, target, source, target, port, "Ingress"
    )


def _passes(
    policies: list[Mapping[str, Any]], own: End, other: End, target: End, port: int, way: str
) -> bool:
    specs = [policy["spec"] for policy in policies]
    its = [
        spec
        for spec in specs
        if own.address is None
        and way in spec["policyTypes"]
        and _selects(spec["podSelector"], own.labels)
    ]
    if not its:
        return True
    rules = [rule for spec in its for rule in spec.get(way.lower()) or []]
    side = "to" if way == "Egress" else "from"
    return any(
        _is_peer(rule.get(side), own, other) and _is_port(rule.get("ports"), target, port)
        for rule in rules
    )


def _is_peer(peers: list[Mapping[str, Any]] | None, own: End, other: End) -> bool:
    return not peers or any(_matches(peer, own, other) for peer in peers)


def _matches(peer: Mapping[str, Any], own: End, other: End) -> bool:
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        return other.address is not None and ip_address(other.address) in ip_network(block["cidr"])
    if other.address is not None:
        return False
    if "namespaceSelector" in peer:
        is_there = _selects(peer["namespaceSelector"], other.namespace)
    else:
        is_there = other.namespace == own.namespace
    return is_there and _selects(peer.get("podSelector", {}), other.labels)


def _is_port(ports: list[Mapping[str, Any]] | None, target: End, port: int) -> bool:
    return not ports or any(
        each.get("protocol", "TCP") == "TCP"
        and target.ports.get(each["port"], each["port"]) == port
        for each in ports
    )


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    wanted = selector.get("matchLabels") or {}
    return wanted.items() <= labels.items() and all(
        (labels.get(each["key"]) in each["values"]) == (each["operator"] == "In")
        for each in selector.get("matchExpressions") or []
    )
