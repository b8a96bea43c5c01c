# SPDX-License-Identifier: GPL-2.0-or-later
"""Alert rules and dashboard: well formed, and about metrics that there are."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fake_manager import FakeManager
from live_vm import live_vm
from test_metrics import scrape
from uffdmm import Manager
from uffdmm.metrics import UffdmmCollector

CONTRIB = Path(__file__).parents[2] / "contrib"
RULES = CONTRIB / "prometheus" / "uffdmm.rules.yml"
DASHBOARD = CONTRIB / "grafana" / "uffdmm.json"
# Sample names end in these where the family does not.
NAME = re.compile(r"\buffdmm_(?:vm|tier|manager)_\w+")


def promtool(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed")
    return subprocess.run(
        [program, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.fixture
def exported(fake: FakeManager, manager: Manager) -> set[str]:
    """Names of all samples and labels."""
    collector = UffdmmCollector(manager)
    with live_vm(fake, "web"):
        text = scrape(collector)
    collector.close()
    names = set()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            names |= {sample.name, *sample.labels}
    return names


def test_rules_and_their_tests() -> None:
    done = promtool("test", "rules", "uffdmm.rules.test.yml", cwd=RULES.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    done = promtool("check", "config", "prometheus.yml", cwd=RULES.parent)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_tests_would_notice_a_wrong_rule(tmp_path: Path) -> None:
    rules = RULES.read_text()
    wrong = rules.replace("uffdmm_vm_up == 0", "uffdmm_vm_up == 1")
    assert wrong != rules
    (tmp_path / RULES.name).write_text(wrong)
    shutil.copy(RULES.with_name("uffdmm.rules.test.yml"), tmp_path)
    assert promtool("test", "rules", "uffdmm.rules.test.yml", cwd=tmp_path).returncode != 0


def test_each_alert_is_tested() -> None:
    alerts = re.findall(r"- alert: (\w+)", RULES.read_text())
    tests = RULES.with_name("uffdmm.rules.test.yml").read_text()
    assert alerts
    for alert in alerts:
        assert f"alertname: {alert}\n        exp_alerts" in tests


def test_rules_are_about_metrics_that_there_are(exported: set[str]) -> None:
    asked = set(NAME.findall(RULES.read_text()))
    assert asked
    assert asked - exported == set()


def test_the_dashboard_is_about_metrics_that_there_are(exported: set[str]) -> None:
    dashboard: Any = json.loads(DASHBOARD.read_text())
    texts = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    texts += [variable["query"] for variable in dashboard["templating"]["list"]]
    asked = set(NAME.findall(" ".join(texts)))
    assert len(asked) > 15
    assert asked - exported == set()
    # Panels stand beside and below one another, not upon.
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places)
