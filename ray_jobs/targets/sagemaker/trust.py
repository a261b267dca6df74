"""Whether a role's trust policy lets SageMaker take the role on.

Source: IAM User Guide, "Policy evaluation logic" and "AWS JSON policy elements".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SERVICE = "sagemaker.amazonaws.com"
_ACTION = "sts:AssumeRole"


@dataclass(frozen=True)
class Trust:
    """What a policy says of a service."""

    is_given: bool | None  # None: under conditions, which are not evaluated
    why: str


def trust(policy: Any, service: str = SERVICE) -> Trust:
    """Whether a policy, as IAM returns it, lets a service assume its role.

    What it does not say is not allowed, and a Deny outweighs every Allow.
    """
    allowing, denying = [], []
    for statement in _statements(policy):
        if _names_principal(statement, service) and _names_action(statement):
            effect = statement.get("Effect")
            if effect == "Deny":
                denying.append(statement)
            elif effect == "Allow":
                allowing.append(statement)
    if any(not statement.get("Condition") for statement in denying):
        return Trust(False, f"it denies {_ACTION} to {service}")
    if not allowing:
        trusted = sorted(set(_trusted(policy)))
        if service in trusted:
            return Trust(False, f"it lets {service} do no {_ACTION}")
        whom = f"it trusts {', '.join(trusted)} alone" if trusted else "it trusts nobody"
        return Trust(False, f"{whom}, not {service}")
    if denying:
        return Trust(None, f"it denies {_ACTION} to {service} if {_conditions(denying)}")
    if all(statement.get("Condition") for statement in allowing):
        return Trust(None, f"it trusts {service} only if {_conditions(allowing)}")
    return Trust(True, f"it trusts {service}")


def _statements(policy: Any) -> Iterator[Mapping[str, Any]]:
    found = policy.get("Statement") if isinstance(policy, Mapping) else None
    for statement in _as_list(found):
        if isinstance(statement, Mapping):
            yield statement


def _names_principal(statement: Mapping[str, Any], service: str) -> bool:
    if "NotPrincipal" in statement:
        return not _is_among(statement["NotPrincipal"], service)
    return _is_among(statement.get("Principal"), service)


def _is_among(principal: Any, service: str) -> bool:
    # "*" and {"AWS": "*"} are the same: everyone.
    if not isinstance(principal, Mapping):
        return principal == "*"
    return service in _as_list(principal.get("Service")) or "*" in _as_list(principal.get("AWS"))


def _names_action(statement: Mapping[str, Any]) -> bool:
    if "NotAction" in statement:
        return not _has_action(statement["NotAction"])
    return _has_action(statement.get("Action"))


def _has_action(patterns: Any) -> bool:
    for pattern in _as_list(patterns):
        text = re.escape(str(pattern)).replace(r"\*", ".*").replace(r"\?", ".")
        if re.fullmatch(text, _ACTION, re.IGNORECASE):
            return True
    return False


def _trusted(policy: Any) -> Iterator[str]:
    """Everyone whom an Allow names."""
    for statement in _statements(policy):
        principal = statement.get("Principal")
        if statement.get("Effect") == "Allow" and isinstance(principal, Mapping):
            for kind in principal.values():
                yield from map(str, _as_list(kind))


def _conditions(statements: list[Mapping[str, Any]]) -> str:
    """`aws:SourceAccount and aws:SourceArn are as its condition says`."""
    keys = {
        key
        for statement in statements
        for tests in statement["Condition"].values()
        for key in tests
    }
    return f"{' and '.join(sorted(keys))} {'is' if len(keys) == 1 else 'are'} as its condition says"


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
