"""Wraps deploy/monitoring/rules.yaml into the Prometheus operator's object: `python -m tools.prometheusrule`.

promtool and Prometheus itself want the plain file, the operator wants it inside an object, and Kustomize can't put one
into the other. So the plain file is the source, and a test holds the object equal to it. It never changes a rule.
"""

from pathlib import Path

MONITORING = Path(__file__).resolve().parents[1] / "deploy" / "monitoring"

HEAD = """\
# Made from rules.yaml by `python -m tools.prometheusrule`; change it there.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: vm-sync
spec:
"""


def prometheusrule(rules: str) -> str:
    """Return the object that holds these rules, comments and all."""
    return HEAD + "".join(f"  {line}" if line.strip() else line for line in rules.splitlines(keepends=True))


def main() -> None:
    """Write the object beside the rules."""
    (MONITORING / "prometheusrule.yaml").write_text(prometheusrule((MONITORING / "rules.yaml").read_text()))


if __name__ == "__main__":
    main()
