"""The files for clouds: Ray's own check of them, pins that agree, verbs that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from namedmask.run.verb_table import VERBS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "cluster"


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_cluster_file_passes_the_check_of_ray_up(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = load(name)
    validate_config(prepare_config(config))
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in one for one in starts if "ray start" in one)


def test_cluster_kuberay_job_runs_verbs_that_exist_on_the_pinned_ray() -> None:
    spec = load("kuberay.yaml")["spec"]
    modules = re.findall(r"ray_jobs (\w+)", spec["entrypoint"])
    assert modules
    assert set(modules) <= set(VERBS)
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == pins()["ray"]
    assert cluster["authOptions"] == {"mode": "token"}
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    (container,) = groups["gpu"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


def pins() -> dict[str, str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["gpu"]]
    return {re.split(r"[\[=]", line)[0]: line.rpartition("==")[2] for line in lines}


def test_cluster_dockerfile_pins_agree_with_pyproject() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    known = pins()
    found = dict(re.findall(r"([a-z-]+)==([\d.]+)", text))
    headless = found.pop("opencv-python-headless")
    assert headless == known["opencv-python"]
    assert found == {name: known[name] for name in ("torch", "torchvision", "onnxruntime-gpu")}
