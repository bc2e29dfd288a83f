"""The launcher `kubernetes`: an Indexed Job per resource class, one index per task; Kubernetes places and restarts.

Exit codes are rules of the Job (`podFailurePolicy`): 64 fails the index for good, 75 and disruptions are started again
and not counted, anything else at most `RETRIES` times. A run on several nodes is a Job of its own with one index per
process and a headless service, through which process 0 is found. Kubernetes has no dependencies between Jobs: held-out
cells are submitted by the same command once the fitted cells have ended.

The name of an object is a hash of its content. It is kept in <workdir>/kubernetes before it is submitted.
"""

import contextlib
import json
import os
import pathlib
import re
import sys
from collections.abc import Sequence
from typing import Any

from lmjax.distributed import ENVIRONMENT
from lmjax.errors import InputError
from lmjax.sweeps.launchers import RETRIES, Stage, Task, choice, chosen, classes, name_of

PORT = 8476  # of process 0
SAVE_SECONDS = 300  # between SIGTERM and SIGKILL
INDEX = "batch.kubernetes.io/job-completion-index"  # annotation of a pod


def render(stage: Stage) -> list[dict[str, Any]]:
    """Returns the objects of all tasks; the caller leaves out held-out cells that must wait.

    Raises:
        InputError: no image or volume; run directories outside the volume; both GPUs and TPUs.
    """
    objects = []
    for part in classes([*stage.fitted, *stage.held_out]):
        if part[0].resources.nodes == 1:
            objects.append(_job(part, stage))
            continue
        for task in part:
            job = _job([task], stage)
            name = job["metadata"]["name"]
            objects += [_service(name, job["metadata"]["labels"]), job]
    return objects


def _job(part: Sequence[Task], stage: Stage) -> dict[str, Any]:
    need, nodes = part[0].resources, part[0].resources.nodes
    claim, mount = _volume(need, stage.workdir)
    chips = {"nvidia.com/gpu": str(need.gpus), "google.com/tpu": str(need.tpus)}
    chips = {name: count for name, count in chips.items() if count != "0"}
    if len(chips) > 1:
        raise InputError(f"expected launch.gpus or launch.tpus, got both ({need.gpus} and {need.tpus})")
    asked = {"cpu": str(need.cpus), **chips}
    asked |= {"memory": f"{round(need.memory * 1024)}Mi"} if need.memory is not None else {}
    part = [task._replace(command=("python", *task.command[1:])) for task in part]  # the image's own
    script = choice("JOB_COMPLETION_INDEX", part) + '\nexec "${task[@]}" >> "$log" 2>&1\n'
    size = {"completions": len(part), "parallelism": min(stage.at_once or len(part), len(part))}
    if nodes > 1:  # the index is that of the process
        script = f"export {ENVIRONMENT[2]}=$JOB_COMPLETION_INDEX JOB_COMPLETION_INDEX=0\n{script}"
        size = {"completions": nodes, "parallelism": nodes}
    selectors = dict(_pair(text) for text in need.extra)
    container = {
        "name": "train",
        "image": need.image,
        "command": ["bash", "-c", script],
        "resources": {"requests": asked, "limits": {**chips, **{k: v for k, v in asked.items() if k == "memory"}}},
        "volumeMounts": [{"name": "shared", "mountPath": mount}],
    }
    pod = {
        "restartPolicy": "Never",  # podFailurePolicy requires it
        "terminationGracePeriodSeconds": SAVE_SECONDS,
        "containers": [container],
        "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": claim}}],
        **({"nodeSelector": selectors} if selectors else {}),
    }
    rules = [
        {
            "action": "FailIndex" if nodes == 1 else "FailJob",
            "onExitCodes": {"containerName": "train", "operator": "In", "values": [64]},
        },
        {"action": "Ignore", "onExitCodes": {"containerName": "train", "operator": "In", "values": [75]}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    spec = {
        "completionMode": "Indexed",
        **size,
        "backoffLimitPerIndex": RETRIES,
        "podFailurePolicy": {"rules": rules},
        "template": {"spec": pod},
    }
    name = name_of(json.dumps(spec))
    environment = {"LMJAX_CACHE": f"{mount}/lmjax-cache"}
    if stores := os.environ.get("LMJAX_STORES"):
        environment["LMJAX_STORES"] = stores
    if nodes > 1:
        pod["subdomain"] = name
        environment |= {ENVIRONMENT[0]: f"{name}-0.{name}:{PORT}", ENVIRONMENT[1]: str(nodes)}
    container["env"] = [{"name": key, "value": value} for key, value in environment.items()]
    labels = {"lmjax/sweep": name_of(str(stage.workdir)), "lmjax/job": name}
    spec["template"]["metadata"] = {"labels": labels}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
    }


def _service(name, labels) -> dict[str, Any]:
    """Gives the pods of a Job host names before they are ready."""
    spec = {"clusterIP": "None", "selector": {"lmjax/job": name}, "publishNotReadyAddresses": True}
    spec["ports"] = [{"name": "coordinator", "port": PORT}]
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels}, "spec": spec}


def _volume(need, workdir) -> tuple[str, str]:
    if not need.image or not need.volume:
        raise InputError(
            "the launcher kubernetes expects launch.image (a container image with lmjax) and launch.volume (CLAIM:/path"
            f" of a shared volume), got {need.image} and {need.volume}"
        )
    claim, _, mount = need.volume.partition(":")
    if not workdir.is_relative_to(mount):
        raise InputError(
            f"launch.volume: expected a volume that holds the run directories, got {mount}; mount it at the same path "
            f"here and set --workdir below it (now {workdir})"
        )
    return claim, mount.rstrip("/")


def _pair(text) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (equals and re.fullmatch(r"[\w./-]+", key) and re.fullmatch(r"[\w.-]*", value)):
        raise InputError(f"launch.extra: expected node selectors KEY=VALUE for Kubernetes, got {text!r}")
    return key, value


def show(objects: Sequence[dict]) -> str:
    """Returns the objects as one JSON list, which `kubectl apply -f -` takes."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}, indent=2) + "\n"


def submit(objects: Sequence[dict], workdir: pathlib.Path) -> list[str]:
    """Creates the objects through the official client; returns a sentence for each Job.

    Raises:
        InputError: the client is not installed, no cluster is configured, or the cluster refuses an object.
    """
    batch, core, namespace, ApiException = _client()
    (workdir / "kubernetes").mkdir(parents=True, exist_ok=True)
    objects, said = [_renamed(made, workdir / "kubernetes") for made in objects], []
    for made in objects:
        name = made["metadata"]["name"]
        create = batch.create_namespaced_job if made["kind"] == "Job" else core.create_namespaced_service
        try:
            create(namespace, made, dry_run="All")  # the cluster checks everything before anything is created
        except ApiException as error:
            raise InputError(f"Kubernetes refuses {name}: {_reason(error)}; nothing was submitted") from error
    for made in objects:
        name = made["metadata"]["name"]
        if made["kind"] == "Job":
            (workdir / "kubernetes" / f"{name}.json").write_text(json.dumps(made, indent=1))
        create = batch.create_namespaced_job if made["kind"] == "Job" else core.create_namespaced_service
        try:
            create(namespace, made)
        except ApiException as error:
            raise InputError(f"Kubernetes refuses {name}: {_reason(error)}; the same command continues") from error
        if made["kind"] == "Job":
            said.append(f"Job {namespace}/{name}: {made['spec']['completions']} indexes")
    return said


def _renamed(made: dict, folder: pathlib.Path) -> dict:
    """The object, under a further name if it was submitted before: a Job that has ended keeps its name in the cluster.

    Example: lmjax-0123456789ab, then lmjax-0123456789ab-1
    """
    name, text = made["metadata"]["name"], json.dumps(made)
    before = len([*folder.glob(f"{name}*.json")])
    return json.loads(text.replace(name, f"{name}-{before}")) if before else made


def queued(workdir: pathlib.Path) -> dict[str, str]:
    """Returns {run id: "JOB-3 RUNNING" or "JOB-3 PENDING (Unschedulable)"} of the cells in Jobs that have not ended.

    Raises:
        InputError: Jobs were submitted, but the cluster cannot be asked.
    """
    kept = {path.stem: json.loads(path.read_text()) for path in (workdir / "kubernetes").glob("lmjax-*.json")}
    if not kept:
        return {}
    batch, core, namespace, ApiException = _client()
    ours = {"label_selector": f"lmjax/sweep={name_of(str(workdir.absolute()))}"}
    alive = {"field_selector": "status.phase!=Succeeded,status.phase!=Failed"}
    try:
        jobs = batch.list_namespaced_job(namespace, **ours).items
        pods = core.list_namespaced_pod(namespace, **ours, **alive).items
    except ApiException as error:
        raise InputError(f"Kubernetes does not list the Jobs and pods of {workdir}: {_reason(error)}") from error
    states = {(pod.metadata.labels["lmjax/job"], int(pod.metadata.annotations[INDEX])): _state(pod) for pod in pods}
    found = {}
    for job in jobs:
        name, status = job.metadata.name, job.status
        if name not in kept or {condition.type for condition in status.conditions or ()} & {"Complete", "Failed"}:
            continue
        spec, done = kept[name]["spec"], {*_indexes(status.completed_indexes), *_indexes(status.failed_indexes)}
        tasks = chosen(spec["template"]["spec"]["containers"][0]["command"][-1])
        parts = {index: {index} for index in tasks}
        if "subdomain" in spec["template"]["spec"]:  # several processes of one run: until the Job ends
            parts, done = {0: {*range(spec["completions"])} - done}, set()
        for index in sorted(tasks.keys() - done):
            told = [states.get((name, part), "PENDING (no pod yet)") for part in sorted(parts[index])]
            text = next((state for state in told if state != "RUNNING"), "RUNNING")  # else what it waits for
            text = "PENDING (suspended)" if job.spec.suspend else text
            found |= dict.fromkeys(tasks[index], f"{name}-{index} {text}")
    return found


def _state(pod) -> str:
    """Returns the phase of a pod that has not ended and the reason for which it or its container waits.

    Example: "RUNNING"; "PENDING (Unschedulable)"; "PENDING (ImagePullBackOff)"
    """
    waits = [container.state.waiting for container in pod.status.container_statuses or () if container.state.waiting]
    waits += [one for one in pod.status.conditions or () if (one.type, one.status) == ("PodScheduled", "False")]
    reason = next((f" ({one.reason})" for one in waits if one.reason), "")
    return f"{pod.status.phase.upper()}{reason}"


def _indexes(text: str | None) -> list[int]:
    """The indexes of a Job's status: "1,3-5" -> [1, 3, 4, 5]."""
    ends = [part.split("-") for part in (text or "").split(",") if part]
    return [index for part in ends for index in range(int(part[0]), int(part[-1]) + 1)]


def _client():
    try:
        from kubernetes import client, config
    except ImportError as error:
        raise InputError(
            'the Kubernetes client is not installed; pip install "lmjax[kubernetes]", or pass --dry-run and give the '
            "output to kubectl apply -f -"
        ) from error
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it prints
            config.load_config()
    except config.ConfigException as error:
        raise InputError(f"no Kubernetes cluster is configured ({error}); set KUBECONFIG") from error
    try:
        active = config.list_kube_config_contexts()[1]["context"]
    except config.ConfigException:  # inside a pod
        active = {}
    return client.BatchV1Api(), client.CoreV1Api(), active.get("namespace", "default"), client.ApiException


def _reason(error) -> str:
    try:
        return json.loads(error.body)["message"]
    except (TypeError, ValueError, KeyError):
        return f"{error.status} {error.reason}"
