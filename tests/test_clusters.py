"""The manifests in clusters/: against Ray's and KubeRay's schemas, and what is pinned and tested here. No cluster runs."""

import json
import os
import re
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.kuberay_schema import SCHEMAS
from tests.test_cluster_yaml import check_launcher

ROOT = Path(__file__).parents[1]
KUBERAY = ("kuberay.yaml", "kuberay-job.yaml")


def manifest(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "clusters" / name).read_text())
    return loaded


def cluster_of(document: dict[str, Any]) -> dict[str, Any]:
    cluster: dict[str, Any] = document["spec"].get("rayClusterSpec", document["spec"])
    return cluster


def test_ray_accepts_the_cluster_on_google_cloud() -> None:
    config = manifest("gcp.yaml")
    prepared = check_launcher(config)
    assert prepared["provider"]["type"] == "gcp"
    assert prepared["setup_commands"] == config["setup_commands"], "not Ray's own"


def test_a_mistake_in_it_is_found() -> None:
    config = manifest("gcp.yaml")
    config["available_node_types"]["gpu"]["resources"]["GPU"] = "1"
    with pytest.raises(jsonschema.ValidationError):
        check_launcher(config)


def test_it_differs_from_that_on_aws_by_the_cloud_alone() -> None:
    ours, theirs = manifest("gcp.yaml"), yaml.safe_load((ROOT / "cluster.yaml").read_text())
    clouds = {"provider", "available_node_types", "setup_commands"}
    assert {key: value for key, value in ours.items() if key not in clouds} == {
        key: value for key, value in theirs.items() if key not in clouds
    }
    assert [command.replace("[demo]", "[demo,cluster]") for command in ours["setup_commands"]] == theirs["setup_commands"]
    for name in ("head", "gpu"):
        mine, other = ours["available_node_types"][name], theirs["available_node_types"][name]
        assert {**mine, "node_config": None} == {**other, "node_config": None}


@pytest.mark.parametrize("name", KUBERAY)
def test_a_manifest_for_kuberay_is_of_the_form_that_we_know(name: str) -> None:
    document = manifest(name)
    jsonschema.validate(document, SCHEMAS[document["kind"]])


@pytest.mark.parametrize("name", KUBERAY)
def test_a_manifest_for_kuberay_is_of_the_form_that_kuberay_wants(name: str) -> None:
    """Only with the CRDs of KubeRay at hand: they are too large to keep a copy."""
    folder = os.environ.get("AUTOCOMPRESS_KUBERAY_CRDS")
    if folder is None:
        pytest.skip("AUTOCOMPRESS_KUBERAY_CRDS names no folder with KubeRay's CRDs")
    document = manifest(name)
    crds = (yaml.safe_load(file.read_text()) for file in Path(folder).glob("*.yaml"))
    (crd,) = (crd for crd in crds if crd["spec"]["names"]["kind"] == document["kind"])
    (schema,) = (one["schema"]["openAPIV3Schema"] for one in crd["spec"]["versions"] if one["name"] == "v1")
    jsonschema.validate(document, strict(schema))


def strict(schema: Any) -> Any:
    """As the Kubernetes API is with --validate=strict: what is not named is refused."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: strict(value) for key, value in schema.items()}
    if "properties" in schema and isinstance(schema["properties"], dict) and "additionalProperties" not in schema:
        named = schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields")
        if named and schema["properties"].keys() != {"metadata"}:
            inner["additionalProperties"] = False
    return inner | ({"properties": {**inner["properties"], "metadata": {}}} if "kind" in schema.get("properties", {}) else {})


def _no_template(cluster: dict[str, Any]) -> None:
    del cluster["workerGroupSpecs"][0]["template"]


def _number(cluster: dict[str, Any]) -> None:
    cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0


def _other_name(cluster: dict[str, Any]) -> None:
    cluster["autoScalerOptions"] = cluster.pop("autoscalerOptions")


@pytest.mark.parametrize("spoil", [_no_template, _number, _other_name])
@pytest.mark.parametrize("name", KUBERAY)
def test_a_mistake_in_a_manifest_is_found(name: str, spoil: Callable[[dict[str, Any]], None]) -> None:
    document = manifest(name)
    spoil(cluster_of(document))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMAS[document["kind"]])


def test_the_job_brings_the_same_cluster_along() -> None:
    assert manifest("kuberay-job.yaml")["spec"]["rayClusterSpec"] == manifest("kuberay.yaml")["spec"]


@pytest.mark.parametrize("name", KUBERAY)
def test_on_kubernetes_too_the_head_trains_nothing_and_nobody_is_let_in_without_the_token(name: str) -> None:
    cluster = cluster_of(manifest(name))
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == version("ray")
    head = cluster["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP"
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert json.loads(json.loads(head["rayStartParams"]["resources"])) == {"latency_lane": 1}
    (workers,) = cluster["workerGroupSpecs"]
    assert (workers["minReplicas"], workers["replicas"]) == (0, 0)


@pytest.mark.parametrize("name", KUBERAY)
def test_a_pod_asks_for_what_it_may_have(name: str) -> None:
    cluster = cluster_of(manifest(name))
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        for container in group["template"]["spec"]["containers"]:
            assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_job_goes_on_with_what_was_begun() -> None:
    spec = manifest("kuberay-job.yaml")["spec"]
    assert subprocess.run(["bash", "-n", "-c", spec["entrypoint"]], capture_output=True, check=False).returncode == 0
    assert "autocompress resume /runs/first" in spec["entrypoint"]
    assert spec["backoffLimit"] > 0


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (ROOT / "clusters/Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", "")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def test_the_image_has_the_versions_that_are_tested_here() -> None:
    runs = [what for name, what in instructions() if name == "RUN"]
    pinned = dict(re.findall(r'"?(torch|ray)(?:\[[\w,]+\])?==([\d.]+)"?', " ".join(runs)))
    assert pinned == {"torch": version("torch").partition("+")[0], "ray": version("ray")}
    (base,) = [what for name, what in instructions() if name == "FROM"]
    assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base), "an exact version"
    pips = [what for what in runs if what.startswith("pip install")]
    assert "torch==" in pips[0], "torch goes first"
    assert len(pips) == 2
    assert all("--constraint constraints.txt" in what for what in pips)


def test_the_image_is_made_of_files_that_exist_and_that_are_sent() -> None:
    sent = (ROOT / "clusters/Dockerfile.dockerignore").read_text().splitlines()
    assert sent[0] == "*"
    for _, what in (one for one in instructions() if one[0] == "COPY"):
        for source in what.split()[:-1]:
            assert (ROOT / source).exists()
            assert f"!{source}" in sent


def test_the_image_does_not_run_as_root() -> None:
    assert instructions()[-1] == ("USER", "ray")


def test_the_script_for_slurm_is_sound_and_starts_ray_with_a_token() -> None:
    file = ROOT / "clusters/slurm.sh"
    assert subprocess.run(["bash", "-n", file], capture_output=True, check=False).returncode == 0
    text = file.read_text()
    assert text.index("RAY_AUTH_MODE=token") < text.index("ray start")
    assert "0.0.0.0" not in text
