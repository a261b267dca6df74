"""What the pods run: commands that there are, with options that they take."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from rendered_chart import VALUE_SETS, objects, pod_templates


def _commands(program: str) -> Iterator[tuple[str, list[str]]]:
    """Each command line of a program, after its name, once."""
    found = {}
    for name in VALUE_SETS:
        for pod in pod_templates(objects(name)):
            for container in pod.containers:
                line = [*container.get("command", []), *container.get("args", [])]
                if line[:1] == [program]:
                    found[" ".join(line)] = line[1:]
    yield from found.items()


@pytest.mark.parametrize(("line", "words"), list(_commands("emberline")))
def test_emberline_takes_the_command_line(line: str, words: list[str]) -> None:
    from typer.main import get_command

    from pipelines.cli import app

    group = get_command(app)
    command = group.get_command(
        group.make_context("emberline", [], resilient_parsing=True), words[0]
    )
    assert command is not None, f"there is no emberline {words[0]}"
    command.make_context(words[0], words[1:])  # raises a UsageError of an unknown option or value


def test_the_reaper_takes_its_command_lines() -> None:
    from ray_jobs.reap import parse_options

    lines = [words[2:] for _, words in _commands("python") if words[1] == "ray_jobs.reap"]
    options = [parse_options(words) for words in lines]  # wrong usage would be a SystemExit
    assert {each.grace for each in options} == {120, 300}
    assert {tuple(each.namespaces) for each in options} == {
        ("ns", "kubeflow"),
        ("ns", "kubeflow", "team-a"),
    }
    assert [each.addresses for each in options if each.addresses] == [
        ["http://ml-ray-head-svc:8265"]
    ]


def test_mlflow_takes_its_command_lines() -> None:
    from mlflow.cli import cli

    lines = [words for _, words in _commands("mlflow")]
    assert {words[0] for words in lines} == {"server", "db"}
    for words in lines:
        command = cli.commands[words[0]]
        rest = words[1:]
        if words[0] == "db":
            command, rest = command.commands[rest[0]], rest[1:]
        command.make_context(words[0], rest)
