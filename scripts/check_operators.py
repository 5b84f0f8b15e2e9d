"""Check the files for operators with the tools that read them.

    uv run scripts/check_operators.py

promtool checks the alerts and runs their tests; systemd-analyze reads the unit
and says how exposed the service is under it; the compose file and the
Kubernetes deployment are held against their schemas. promtool and systemd-analyze
come from Debian (root, apt-get), the schemas from Python packages. What cannot
be had is skipped, and said.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from check_container import CannotRun, Failed, install, run

HERE: Final = Path(__file__).resolve().parent
EXPOSURE: Final = 20  # tenths, of 100: systemd calls it OK
COMPOSE_SCHEMA: Final = "check-jsonschema==0.39.0"
KUBERNETES_SCHEMA: Final = "kubernetes-validate==1.37.0"


def main() -> None:
    failed = False
    for check in (alerts, unit, compose, kubernetes):
        try:
            told = check()
        except CannotRun as why:
            told = f"skipped: {why}"
        except Failed as why:
            told, failed = f"FAILED: {why}", True
        print(f"{check.__name__:<12} {told}", flush=True)
    sys.exit(failed)


def alerts() -> str:
    promtool = tool("promtool", package="prometheus")
    run([promtool, "check", "rules", HERE / "alerts.yml"], limit=60)
    run([promtool, "test", "rules", HERE / "alerts_test.yml"], limit=60)
    return "promtool takes the rules, and their tests pass"


def unit() -> str:
    analyze = tool("systemd-analyze", package="systemd")
    with tempfile.TemporaryDirectory(prefix="ratebridge-unit-") as folder:
        copy = Path(folder) / "ratebridge.service"
        text = (HERE / copy.name).read_text(encoding="utf-8")
        # The program is not there, but another that can be executed.
        copy.write_text(text.replace("/opt/ratebridge/bin/ratebridge", "/bin/true"), "utf-8")
        command = [analyze, "verify", "--man=no", str(copy)]
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if found.returncode or found.stderr:  # an unknown setting is 0, and a line
            raise Failed(found.stderr)
        security = ["security", "--offline=true", f"--threshold={EXPOSURE}", "--no-pager"]
        *_, verdict = run([analyze, *security, copy], limit=60).split("\n→ ")
    return f"systemd-analyze takes the unit. {verdict.strip()}"


def compose() -> str:
    validate = python_tool(COMPOSE_SCHEMA)
    run([*validate, "--builtin-schema", "vendor.compose-spec", HERE / "compose.yaml"], limit=60)
    return "as the schema of compose files wants it"


def kubernetes() -> str:
    run([*python_tool(KUBERNETES_SCHEMA), "--strict", HERE / "kubernetes.yaml"], limit=60)
    return "as the schema of Kubernetes wants it"


def tool(name: str, *, package: str) -> str:
    """The path of a program. Raises `CannotRun` where it is not here and cannot be installed."""
    if not shutil.which(name):
        install(name, packages=[package])
    path = shutil.which(name)
    assert path, "install has said so otherwise"
    return path


def python_tool(package: str) -> list[str]:
    """How to run the program of a Python package, by uv in an environment of its own."""
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        raise CannotRun("there is no uv to get its tool with")
    command = [uv, "tool", "run", "--from", package, package.partition("==")[0]]
    run([*command, "--version"], limit=300, failure=CannotRun)
    return command


if __name__ == "__main__":
    main()
