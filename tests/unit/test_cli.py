"""Wrong input on purpose: one message, the right exit code, nothing that looks like a success."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pipelines import cli
from tests.conftest import SMALL_JOB, arguments


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture):
    """Call the command line in this process; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["emberline", *words])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capfd.readouterr()
        return caught.value.code or 0, captured.out, captured.err

    return run


def table(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ["run", "fier"],
            2,
            "error: no workload 'fier'; there is fire, waste, gcode (did you mean 'fire'?)\n",
        ),
        (["run", "fire", "--set", "sed=1"], 2, "error: --set: sed: unknown key; the top level has"),
        (["run", "fire", "--config", "x.yaml"], 2, "error: x.yaml: no such file"),
        (["run", "fire", "--target", "moon"], 2, "target: input should be 'local'"),
        (["run", "fire", "--run-id", "a/b"], 2, "run id 'a/b': use letters, digits"),
        (["run", "fire", "--storage", "/proc/x"], 3, "storage '/proc/x' cannot be written"),
        (["run", "fire", "--resume"], 2, "no unfinished run of 'fire' under './runs'"),
        (["report", "absent"], 2, "no run 'absent' under './runs'"),
        (["compare", "absent", "other"], 2, "no run 'absent' under './runs'"),
        (["compare", "a", "b", "--live"], 2, "--live compares the versions of one model: name it"),
        (["compare", "a", "--since", "1d"], 2, "--confidence belong to --live"),
        (["compare", "fire", "--live"], 2, "no model is registered under"),
        (["pipelines", "submit", "gocde"], 2, "no workload 'gocde'; there is fire, waste, gcode"),
        (["pipelines", "submit", "fire"], 2, "storage './runs' is a folder of this machine"),
        (["pipelines", "submit", "fire", "--deploy", "x"], 2, "--deploy x: it is local or sage"),
        (["pipelines", "submit", "fire", "--data", "x"], 2, "belong to --retraining"),
        (["pipelines", "schedule", "fire"], 2, 'say when: --cron "0 3 * * *" or --every 6h'),
        (["pipelines", "compile", "all", "--sweep"], 2, "belong to one workload"),
        (["pipelines", "schedules"], 2, "where is Kubeflow Pipelines? Set kubeflow.endpoint"),
        (["serve", "fire", "--weight", "0.5"], 2, "--mode and --weight belong to --challenger"),
        (["serve", "fire", "--challenger", "2", "--mode", "x"], 2, "--mode 'x' is not one of"),
        (
            ["data", "gcod", "-o", "out"],
            2,
            "no simulator for 'gcod'; there is one for fire, waste, gcode",
        ),
        (["data", "fire", "-o", "out", "--generator", "x"], 2, "--generator 'x' is not one of"),
        (
            ["data", "fire", "-o", "out", "--samples", "1"],
            2,
            "--samples 1: at least 100 rows are needed",
        ),
        (["doctor", "wast"], 2, "no workload 'wast'; there is fire, waste, gcode"),
        (["run", "fire", "--target", "ray"], 2, "target=ray: ray.address is required"),
        (["run", "fire", "--address", "here:1"], 2, "'here:1' is not the address of a cluster's"),
        (
            ["run", "fire", "--stop-on-interrupt"],
            2,
            "--stop-on-interrupt is for --target ray, rayjob and sagemaker: a run on this machine",
        ),
        (["status", "absent"], 2, "no run 'absent' under './runs'"),
        (["logs", "absent"], 2, "no run 'absent' under './runs'"),
        (["stop"], 2, "name the runs to stop, or all of them with --all"),
        (["stop", "one", "--all"], 2, "name the runs to stop, or all of them with --all"),
        (["stop", "one", "--target", "ray"], 2, "--target and --address belong to --all"),
        (
            ["stop", "--all", "--target", "moon"],
            2,
            "no target 'moon'; there is local, ray, rayjob, sage",
        ),
        (["promote", "fire"], 2, "no model is registered under"),
        (["rollback", "fire"], 2, "no model is registered under"),
        (["predict", "fire", "x.csv", "-o", "out.csv"], 2, "no model is registered under"),
        (["runn"], 2, "No such command 'runn'"),
        (["run"], 2, "issing argument"),
    ],
)
def test_wrong_usage(call, tmp_path: Path, words: list[str], code: int, message: str) -> None:
    exit_code, out, err = call(*words)
    assert exit_code == code
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("result.json"))


def test_json_tells_of_an_error_too(call) -> None:
    exit_code, out, _ = call("run", "fire", "--set", "seed=x", "--json")
    assert exit_code == 2
    assert json.loads(out)["exit_code"] == 2
    assert json.loads(out)["reason"].startswith("--set: seed: ")


def test_a_dry_run_checks_and_trains_nothing(call, tmp_path: Path) -> None:
    exit_code, out, _ = call("run", "fire", "--dry-run", "--json", *arguments(*SMALL_JOB))
    assert exit_code == 0
    plan = json.loads(out)
    assert plan["num_rows"] == {"train": 2100, "val": 450, "test": 450}
    assert [member["name"] for member in plan["members"]] == list(plan["spec"]["members"])
    assert plan["members"][0]["hyperparameters"]["num_trees"] == 20
    assert plan["seconds"] > 0
    assert not list(tmp_path.rglob("*.yaml"))
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_dry_run_finds_the_faults_of_a_table(call, tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", "a,b,fire\n1,x,0\n" + "2,3,1\n" * 30)
    exit_code, _, err = call(
        "run", "fire", "--dry-run", *arguments(f"data.path={path}", "data.label_column=fyre")
    )
    assert exit_code == 3
    assert "t.csv" in err
    assert "'fyre'" in err
    assert "'fire'" in err


def test_simulated_rows_are_written_once(call, tmp_path: Path) -> None:
    exit_code, out, _ = call("data", "fire", "--samples", "500", "-o", "rows", "--json")
    assert exit_code == 0
    assert json.loads(out)["num_samples"] == 500
    exit_code, _, err = call("data", "fire", "--samples", "500", "-o", "rows")
    assert exit_code == 2
    assert "rows already holds files; name an empty folder with -o" in err


def test_the_doctor_exits_3_with_a_fix(call, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    exit_code, out, _ = call("doctor", "--storage", str(tmp_path / "file"), "--json")
    checks = {check["name"]: check for check in json.loads(out)}
    assert exit_code == 3
    assert not checks["storage"]["passed"]
    assert checks["storage"]["fix"]
    assert checks["packages"]["passed"]
    exit_code, out, _ = call("doctor")
    assert exit_code == 0
    assert "failed" not in out


def test_help_imports_nothing_heavy() -> None:
    import subprocess

    heavy = {"torch", "ray", "mlflow", "kfp", "sagemaker", "boto3", "sklearn", "pandas", "scipy"}
    code = (
        "import sys; sys.argv = ['emberline', 'run', '--help']\n"
        "from pipelines.cli import main\n"
        "try: main()\n"
        f"except SystemExit: print(sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")


def test_drawn_pictures_lie_as_a_run_takes_them(call, tmp_path: Path) -> None:
    exit_code, out, _ = call("data", "waste", "-o", "drawn", "--json")
    assert exit_code == 0
    assert json.loads(out)["num_samples"] == 600
    assert len(list((tmp_path / "drawn" / "tea_bags").glob("*.jpg"))) == 20
    exit_code, _, err = call("data", "waste", "-o", "few", "--samples", "20")
    assert exit_code == 2
    assert "--samples 20: at least 300 pictures are needed, 10 of each of 30 classes" in err


def test_a_step_of_a_pipeline_waits_for_what_it_starts(
    call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KFP_POD_NAME", "step-1")
    monkeypatch.setenv("NAMESPACE", "jobs")
    code, _, err = call("run", "fire", "--detach")
    assert code == 2
    assert " ".join(err.split()) == (
        "error: --detach is not for a step of a pipeline: what a step starts belongs to its pod, "
        "and is stopped once that has ended; leave it out, and the step waits"
    )
