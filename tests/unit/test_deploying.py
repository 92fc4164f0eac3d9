"""The files of docs/deploying.md: their commands exist, and their numbers are those of the code."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

from sqlalchemy_bgjob._process.exits import DATABASE, FAILED, SCHEMA, USAGE
from sqlalchemy_bgjob._process.supervisor import STUCK_AFTER
from sqlalchemy_bgjob.cli import cli
from sqlalchemy_bgjob.settings import STUCK_AFTER as GIVEN_UP_AFTER
from sqlalchemy_bgjob.settings import WorkerSettings

PAGE = (Path(__file__).parents[2] / "docs" / "deploying.md").read_text()
UNIT, IMAGE, COMPOSE, MANIFEST = (
    block
    for language in ("ini", "dockerfile", "yaml")
    for block in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
)
COMMANDS = {
    "systemd": shlex.split(re.findall(r"^ExecStart=\S*/(.*)$", UNIT, re.MULTILINE)[0]),
    "container": json.loads(re.findall(r"^CMD (.*)$", IMAGE, re.MULTILINE)[0]),
    **{
        f"kubernetes {number}": [word.strip(' "') for word in words.split(",")]
        for number, words in enumerate(re.findall(r"command: \[(sqlalchemy.*?)\]", MANIFEST))
    },
    **{
        f"compose {number}": [word.strip(' "') for word in words.split(",")]
        for number, words in enumerate(re.findall(r"\[(?:CMD, )?(sqlalchemy-.*?)\]", COMPOSE))
    },
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=[*COMMANDS])
def test_its_commands_are_understood(command: list[str]) -> None:
    program, name, *arguments = command
    assert program == "sqlalchemy-bgjob"

    context = cli.commands[name].make_context(name, arguments)

    # A probe imports no application: it finds the database by the variable.
    assert context.params["engine"] == (None if name == "check" else "shop.db:engine")


def test_its_files_are_well_formed() -> None:
    compose, manifest = yaml.safe_load(COMPOSE), yaml.safe_load(MANIFEST)
    pod = manifest["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    paths = [
        container[f"{kind}Probe"]["httpGet"]["path"]
        for kind in ("startup", "liveness", "readiness")
    ]

    assert compose["services"]["worker"]["environment"].keys() == {"DATABASE_URL"}
    assert container["envFrom"] == pod["initContainers"][0]["envFrom"]
    assert paths == ["/healthz", "/healthz", "/readyz"]
    assert container["ports"] == [{"name": "http", "containerPort": 9464}]
    assert '--http, "0.0.0.0:9464"' in MANIFEST
    assert f'sh -c "sqlalchemy-bgjob check; test $? -ne {FAILED}"' in PAGE
    assert json.loads(re.findall(r"^CMD (.*)$", IMAGE, re.MULTILINE)[0])


def test_compose_and_kubernetes_take_its_files(tmp_path: Path) -> None:
    """By the schemas that they publish; and a word that they do not know is refused."""
    beside = Path(sys.executable).parent
    compose = [beside / "check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
    kubernetes = [beside / "kubernetes-validate", "--strict"]
    for program, text, word in (
        (compose, COMPOSE, "stop_grace_period"),
        (kubernetes, MANIFEST, "terminationGracePeriodSeconds"),
    ):
        right, wrong = tmp_path / "right.yaml", tmp_path / "wrong.yaml"
        right.write_text(text)
        wrong.write_text(text.replace(word, f"{word}x"))
        done = subprocess.run([*program, right], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert subprocess.run([*program, wrong], check=False, capture_output=True).returncode != 0


@pytest.mark.system
def test_systemd_takes_its_unit(tmp_path: Path) -> None:
    """Without a word on stderr; of what it does not know it says so, and goes on."""
    unit = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT, flags=re.MULTILINE)
    for text, objection in (
        (unit, ""),
        (unit.replace("KillMode=mixed", "KillMode=mix"), "Failed to parse kill mode"),
    ):
        (tmp_path / "shop.service").write_text(text)
        command = ["systemd-analyze", "verify", "--man=no", tmp_path / "shop.service"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0
        assert objection in done.stderr if objection else done.stderr == ""


def test_a_stop_is_waited_for() -> None:
    """Until the supervisor itself would kill what is stuck, and a little more."""
    unit = ConfigParser()
    unit.read_string(UNIT)
    (grace,) = re.findall(r"terminationGracePeriodSeconds: (\d+)", MANIFEST)

    longest = WorkerSettings().shutdown_timeout + STUCK_AFTER

    assert int(grace) == int(unit["Service"]["TimeoutStopSec"]) == longest + 5
    assert f"stop_grace_period: {grace}s" in COMPOSE
    assert (GIVEN_UP_AFTER, STUCK_AFTER) == (15.0, 20.0), "the page says these"
    assert unit["Service"]["RestartPreventExitStatus"] == f"{USAGE} {DATABASE} {SCHEMA}"
