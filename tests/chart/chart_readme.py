"""charts/emberline/README.md, made from values.yaml: `python tests/chart/chart_readme.py`.

A comment that begins with `# --` above a key describes it, as helm-docs has it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "charts" / "emberline"

_HEAD = """\
# emberline

{description} Version {version}, of Emberline {app}; Kubernetes {kube}.

```
kubectl create secret generic emberline-postgresql \\
    --from-literal=password="$(openssl rand -hex 24)"
kubectl create secret generic emberline-mlflow \\
    --from-literal=admin-username=admin \\
    --from-literal=admin-password="$(openssl rand -hex 24)" \\
    --from-literal=flask-secret-key="$(openssl rand -hex 32)"
helm install emberline charts/emberline
helm test emberline --logs
```

That is MLflow with a PostgreSQL and a volume for artifacts. With `storage.uri` they are on S3;
`serving.models`, `ray.enabled`, `webhook.enabled`, `retrain.jobs`, `pipelines.enabled`,
`reaper.enabled` and `monitoring.enabled` add the rest. Each file under `ci/` is a set of values
that `make test` renders and checks. Values that do not go together are refused by `helm install`
with a sentence that says what to set.

Every pod meets the Pod Security Standard "restricted": label the namespace with
`pod-security.kubernetes.io/enforce: restricted`. Nothing of a Secret is a value: make the Secrets
first, and name them.

`monitoring.enabled` has the Prometheus operator read models, Ray and jobs; `monitoring.dashboard`
adds a ConfigMap for Grafana's sidecar. Without one, import `dashboards/emberline.json` by hand.

| key | default | what it is |
|---|---|---|
"""


def readme() -> str:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    head = _HEAD.format(
        description=chart["description"],
        version=chart["version"],
        app=chart["appVersion"],
        kube=chart["kubeVersion"].removesuffix("-0").replace(">=", "≥ "),
    )
    rows = (f"| `{key}` | `{default}` | {text} |" for key, default, text in described_values())
    return head + "\n".join(rows) + "\n"


def described_values() -> Iterator[tuple[str, str, str]]:
    """Of each value its path, its default as JSON, and what is said of it."""
    text = (CHART / "values.yaml").read_text(encoding="utf-8")
    lines = text.splitlines()
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    yield from _describe(root, yaml.safe_load(text), "", lines)


def _describe(
    node: yaml.MappingNode, values: dict[str, Any], path: str, lines: list[str]
) -> Iterator[tuple[str, str, str]]:
    for key, value in node.value:
        whole, found = f"{path}{key.value}", values[key.value]
        said = _comment(lines, key.start_mark.line)
        # one row for what is described whole, and one for each leaf of the rest
        if (
            isinstance(value, yaml.MappingNode)
            and value.value
            and not said
            and not value.flow_style
        ):
            yield from _describe(value, found, f"{whole}.", lines)
        else:
            default = json.dumps(found, ensure_ascii=False).replace("|", "\\|")
            yield whole, default, said.replace("|", "\\|")


def _comment(lines: list[str], line: int) -> str:
    above = lines[line - 1].strip() if line else ""
    return above.removeprefix("# -- ") if above.startswith("# -- ") else ""


if __name__ == "__main__":
    (CHART / "README.md").write_text(readme(), encoding="utf-8")
