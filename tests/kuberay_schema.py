"""What of KubeRay's custom resources our manifests use, as JSON schemas written by hand.

After the CRDs of KubeRay 1.6 and 1.7 (https://github.com/ray-project/kuberay, helm-chart/kuberay-operator/crds, Apache-2.0),
which have two million characters. Names that are not here are refused, though KubeRay may know them; what a pod has is here as
far as ours use it. Names of files with the whole CRDs in ``AUTOCOMPRESS_KUBERAY_CRDS`` have the manifests checked against
those too.
"""

from typing import Any


def _object(required: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of, "minItems": 1}


TEXT, WHOLE, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
_NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
_TEXTS = {"type": "object", "additionalProperties": TEXT}
_QUANTITY = {"type": "string", "pattern": r"^\d+(\.\d+)?(m|Ki|Mi|Gi|Ti|k|M|G|T)?$"}
_QUANTITIES = {"type": "object", "additionalProperties": _QUANTITY}

_CONTAINER = _object(
    ("name", "image", "resources"),
    name=_NAME,
    image=TEXT,
    ports=_list(_object(("containerPort",), name=_NAME, containerPort=WHOLE)),
    env=_list(_object(("name", "value"), name=TEXT, value=TEXT)),
    resources=_object(requests=_QUANTITIES, limits=_QUANTITIES),
    volumeMounts=_list(_object(("name", "mountPath"), name=_NAME, mountPath=TEXT)),
)
_VOLUME = _object(("name", "persistentVolumeClaim"), name=_NAME, persistentVolumeClaim=_object(("claimName",), claimName=_NAME))
_TOLERATION = _object(key=TEXT, operator={"enum": ["Exists", "Equal"]}, effect=TEXT)
_POD = _object(
    ("spec",),
    spec=_object(
        ("containers",),
        automountServiceAccountToken=FLAG,
        containers=_list(_CONTAINER),
        volumes=_list(_VOLUME),
        tolerations=_list(_TOLERATION),
    ),
)
_WORKERS = _object(
    ("groupName", "minReplicas", "maxReplicas", "template"),
    groupName=_NAME,
    replicas=WHOLE,
    minReplicas=WHOLE,
    maxReplicas=WHOLE,
    idleTimeoutSeconds=WHOLE,
    rayStartParams=_TEXTS,
    template=_POD,
)
_CLUSTER = _object(
    ("headGroupSpec",),
    rayVersion=TEXT,
    authOptions=_object(mode={"enum": ["disabled", "token"]}, secretName=_NAME),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=_object(version={"enum": ["v1", "v2"]}, idleTimeoutSeconds=WHOLE),
    headGroupSpec=_object(
        ("template",),
        serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        rayStartParams=_TEXTS,
        template=_POD,
    ),
    workerGroupSpecs=_list(_WORKERS),
)
_JOB = _object(
    ("rayClusterSpec", "entrypoint"),
    entrypoint=TEXT,
    backoffLimit=WHOLE,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=WHOLE,
    rayClusterSpec=_CLUSTER,
)


def _resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return _object(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": "ray.io/v1"},
        kind={"const": kind},
        metadata=_object(("name",), name=_NAME, namespace=_NAME),
        spec=spec,
    )


SCHEMAS = {"RayCluster": _resource("RayCluster", _CLUSTER), "RayJob": _resource("RayJob", _JOB)}
