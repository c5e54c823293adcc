"""cluster.yaml against Ray's own schema and its own checks, which `ray up` would only run beside a cloud account."""

import copy
import json
import re
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]
SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    return loaded


def check_launcher(config: dict[str, Any]) -> dict[str, Any]:
    """Both are needed: the schema sees what defaults would hide, Ray's checks see what refers to nothing."""
    jsonschema.validate(config, SCHEMA)
    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    prepared = check_launcher(config)
    assert prepared["available_node_types"].keys() == {"head", "gpu"}
    assert prepared["setup_commands"] == config["setup_commands"], "Ray's defaults would install a nightly wheel"


def _wrong_key(config: dict[str, Any]) -> None:
    config["idle_timeout_mins"] = config.pop("idle_timeout_minutes")


def _no_name(config: dict[str, Any]) -> None:
    del config["cluster_name"]


def _unknown_head(config: dict[str, Any]) -> None:
    config["head_node_type"] = "haed"


def _cpus_as_text(config: dict[str, Any]) -> None:
    config["available_node_types"]["gpu"]["resources"]["CPU"] = "4"


def _no_instance(config: dict[str, Any]) -> None:
    del config["available_node_types"]["gpu"]["node_config"]


@pytest.mark.parametrize("spoil", [_wrong_key, _no_name, _unknown_head, _cpus_as_text, _no_instance])
def test_a_mistake_in_it_is_found(config: dict[str, Any], spoil: Callable[[dict[str, Any]], None]) -> None:
    spoil(config)
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        check_launcher(config)


def test_gpu_machines_are_spot_scale_from_none_and_are_given_back(config: dict[str, Any]) -> None:
    gpu = config["available_node_types"]["gpu"]
    assert gpu["min_workers"] == 0
    assert gpu["max_workers"] == config["max_workers"]
    assert gpu["resources"]["GPU"] == 1
    assert gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert config["idle_timeout_minutes"] == 5


def test_the_head_times_models_and_trains_none(config: dict[str, Any]) -> None:
    assert config["available_node_types"]["head"]["resources"] == {"CPU": 0, "latency_lane": 1}
    assert "GPU" not in config["available_node_types"]["head"]["resources"]


def test_the_cluster_has_the_python_and_the_versions_that_are_tested_here(config: dict[str, Any]) -> None:
    commands = "\n".join(config["setup_commands"])
    pinned = dict(re.findall(r'"(\w+)(?:\[[\w,]+\])?==([\d.]+)"', commands))
    assert pinned == {"ray": version("ray"), "torch": version("torch").partition("+")[0]}
    assert "uv venv --python 3.11 " in commands
    assert (ROOT / "constraints.txt").exists()


def test_mlflow_and_the_dashboard_listen_to_their_own_machine_only(config: dict[str, Any]) -> None:
    commands = "\n".join(config["head_start_ray_commands"])
    assert re.search(r"mlflow server --host 127\.0\.0\.1 --port 5000", commands)
    assert "--dashboard-host=127.0.0.1" in commands
    assert "0.0.0.0" not in commands


@pytest.mark.parametrize("key", ["setup_commands", "head_start_ray_commands", "worker_start_ray_commands"])
def test_every_command_is_sound_shell(config: dict[str, Any], key: str) -> None:
    for command in config[key]:
        assert subprocess.run(["bash", "-n", "-c", command], capture_output=True, check=False).returncode == 0, command
