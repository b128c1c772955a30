"""The files in deploy/kubernetes/ against Kubernetes' schemas and against what the programs do when they are told to end.

    pip install -r tools/deployment-requirements.txt && python3 tools/check_deployment.py [--serve BINARY] [--worker BINARY]

No cluster is needed, and none is asked. Dynamo's own resource has no published schema package: of it, the pods are checked and the names
of its fields. With a binary, the flags that a pod gives it are looked up in its --help.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "deploy/kubernetes"
# `smart-run serve` after its drain, and Dynamo's reserve before its own time to end (worker/src/args.rs).
LAST_WORDS_S, RESERVE_S = 2, 2
# Fields of a component in Dynamo's v1beta1 that are used here.
COMPONENT_FIELDS = {"name", "type", "replicas", "podTemplate", "runtimeVersionOverride", "sharedMemorySize"}


class CheckError(Exception):
    """Something is not as it should be."""


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise CheckError(what)


def pods(resource: dict) -> list[tuple[str, dict]]:
    """Pods that a resource makes: names and specs."""
    if resource["kind"] == "Deployment":
        return [(resource["metadata"]["name"], resource["spec"]["template"]["spec"])]
    if resource["kind"] == "DynamoGraphDeployment":
        return [(component["name"], component["podTemplate"]["spec"]) for component in resource["spec"]["components"]]
    return []


def check_dynamo(resource: dict) -> None:
    expect(resource["apiVersion"] == "nvidia.com/v1beta1", "Dynamo's resource has the version whose pods are plain")
    for component in resource["spec"]["components"]:
        expect(component.keys() <= COMPONENT_FIELDS, f"{component['name']} has unknown fields {component.keys() - COMPONENT_FIELDS}")
        expect(component["type"] in {"frontend", "worker"}, f"{component['name']} is a frontend or a worker")
        containers = component["podTemplate"]["spec"]["containers"]
        expect([container["name"] for container in containers] == ["main"], f"{component['name']} has one container, main")


def flag(container: dict, name: str) -> str | None:
    found = [argument.split("=", 1)[1] for argument in container.get("args", []) if argument.startswith(f"--{name}=")]
    return found[0] if found else None


def seconds_to_end(container: dict) -> float:
    """From the signal, or the hook before it, until the process has ended of its own."""
    drain = float(flag(container, "drain-seconds") or "nan")
    variables = {variable["name"]: variable.get("value") for variable in container.get("env", [])}
    if container["command"] == ["smart-worker"]:
        time_to_end = float(variables["DYN_WORKER_GRACEFUL_SHUTDOWN_TIMEOUT"])
        expect(drain <= time_to_end - RESERVE_S, f"a drain of {drain} s fits into Dynamo's {time_to_end} s")
        return float(variables["DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS"]) + time_to_end
    hook = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    return hook + drain + LAST_WORDS_S


def check_pod(name: str, spec: dict, binaries: dict[str, Path]) -> None:
    for container in spec["containers"]:
        context = container["securityContext"]
        expect(context["allowPrivilegeEscalation"] is False and context["capabilities"]["drop"] == ["ALL"], f"{name} may do no more than it needs")
        expect({"cpu", "memory"} <= container["resources"]["limits"].keys(), f"{name} has limits")
        program = container["command"][0]
        if program not in {"smart-run", "smart-worker"}:
            continue
        expect(spec["securityContext"]["runAsNonRoot"] and context["readOnlyRootFilesystem"], f"{name} is no root and writes to its volumes alone")
        needed, given = seconds_to_end(container), spec["terminationGracePeriodSeconds"]
        expect(needed < given, f"{name} is given {given} s to end and needs {needed:.0f}")
        print(f"{name}: ends within {needed:.0f} of {given} s")
        if program in binaries:
            command = [str(binaries[program])] + [word for word in container["args"] if not word.startswith("--")]
            text = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, timeout=60).stdout
            unknown = [word for word in container["args"] if word.startswith("--") and word.split("=")[0] not in text]
            expect(not unknown, f"{program} does not know {unknown}")
            print(f"{name}: {program} knows its flags")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--serve", type=Path, help="the binary smart-run")
    parser.add_argument("--worker", type=Path, help="the binary smart-worker")
    arguments = parser.parse_args()
    named = {"smart-run": arguments.serve, "smart-worker": arguments.worker}
    binaries = {program: path for program, path in named.items() if path}
    version = kubernetes_validate.latest_version()
    try:
        for path in sorted(FOLDER.glob("*.yaml")):
            for resource in yaml.safe_load_all(path.read_text()):
                if resource["kind"] == "DynamoGraphDeployment":
                    check_dynamo(resource)
                else:
                    kubernetes_validate.validate(resource, version, strict=True)
                for name, spec in pods(resource):
                    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name.lower()}, "spec": spec}
                    kubernetes_validate.validate(pod, version, strict=True)
                    check_pod(name, spec, binaries)
                print(f"{path.name}: {resource['kind']} is valid (Kubernetes {version})")
    except (CheckError, kubernetes_validate.ValidationError) as error:
        print(f"failed: {path.name}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
