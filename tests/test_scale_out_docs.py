"""docs/scale-out.md says what runs: its jobs can be parsed, and their options are those of the commands."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.run import get_args_parser

from ich_seq.cli import cli

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "scale-out.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def started(words: list[str]) -> tuple[Any, str]:
    """Read the words after `torchrun` as torchrun and the command line do; return its options and our command."""
    options = get_args_parser().parse_args(words)
    assert options.module
    assert options.training_script == "ich_seq.cli"
    name, *arguments = options.training_script_args
    with cli.commands[name].make_context(name, arguments) as context:
        assert context.params["out"] is not None
    return options, name


def test_the_lines_for_one_machine_are_understood() -> None:
    lines = [shlex.split(line)[1:] for line in "".join(blocks("sh")).splitlines()]
    assert {started(words)[1] for words in lines} == {"extract-features", "predict"}
    assert all(started(words)[0].standalone for words in lines)


def test_the_job_for_slurm_is_a_script_that_starts_one_torchrun_a_machine() -> None:
    """bash reads it, and each torchrun meets the others by c10d at the first machine."""
    (script,) = blocks("bash")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert "#SBATCH --ntasks-per-node=1" in script
    command = script[script.index("torchrun") :].replace("\\\n", " ")
    values = {"$SLURM_NNODES": "2", "$SLURM_JOB_ID": "7", "$first": "node1", "$data": "data", "$out": "out"}
    for name, value in values.items():
        command = command.replace(name, value)
    options, name = started(shlex.split(command)[1:])
    assert (options.nnodes, options.rdzv_backend, options.rdzv_endpoint) == ("2", "c10d", "node1:29500")
    assert (options.max_restarts, name) == (3, "extract-features")


def test_the_job_for_kubernetes_is_yaml_whose_parts_fit() -> None:
    """Pods of an Indexed Job find pod 0 by the headless service that selects them, and share one volume."""
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all(blocks("yaml")[0])
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    name = job["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": name}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert (spec["completionMode"], spec["completions"]) == ("Indexed", spec["parallelism"])
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    options, _ = started(container["command"][1:])
    assert (options.nnodes, options.nproc_per_node) == (
        str(spec["completions"]),
        str(container["resources"]["limits"]["nvidia.com/gpu"]),
    )
    assert options.rdzv_endpoint == f"{name}-0.{pod['subdomain']}:29500"
