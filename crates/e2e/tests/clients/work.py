"""What a program does with the Python client: run by the test with a kubeconfig and nothing else."""

import sys

from kubernetes import client, config, watch, dynamic
from kubernetes.client.rest import ApiException
config.load_kube_config(sys.argv[1])
core, apps = client.CoreV1Api(), client.AppsV1Api()
crds, custom = client.ApiextensionsV1Api(), client.CustomObjectsApi()

assert client.VersionApi().get_code().minor.startswith("36")
core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name="py")))
core.create_namespaced_config_map("py", {"metadata": {"name": "a"}, "data": {"k": "1"}})
core.patch_namespaced_config_map("a", "py", {"data": {"k": "2"}})
found = core.read_namespaced_config_map("a", "py")
assert found.data == {"k": "2"}, found
found.data["k"] = "3"
found = core.replace_namespaced_config_map("a", "py", found)
stale = core.read_namespaced_config_map("a", "py")
stale.metadata.resource_version = "1"
try:
    core.replace_namespaced_config_map("a", "py", stale)
    raise SystemExit("a stale object was taken")
except ApiException as error:
    assert error.status == 409, error

deployment = client.V1Deployment(
    metadata=client.V1ObjectMeta(name="web"),
    spec=client.V1DeploymentSpec(
        replicas=2,
        selector=client.V1LabelSelector(match_labels={"a": "b"}),
        template=client.V1PodTemplateSpec(
            metadata=client.V1ObjectMeta(labels={"a": "b"}),
            spec=client.V1PodSpec(containers=[client.V1Container(name="c", image="i")]),
        ),
    ),
)
apps.create_namespaced_deployment("py", deployment)
apps.patch_namespaced_deployment_scale("web", "py", {"spec": {"replicas": 3}})
assert apps.read_namespaced_deployment_scale("web", "py").spec.replicas == 3

pages, token = [], None
for number in range(7):
    core.create_namespaced_secret("py", {"metadata": {"name": f"s{number}", "labels": {"page": "1"}}, "stringData": {"x": "y"}})
while True:
    page = core.list_namespaced_secret("py", label_selector="page=1", limit=3, _continue=token)
    pages.append([item.metadata.name for item in page.items])
    token = page.metadata._continue
    if not token:
        break
assert [len(page) for page in pages] == [3, 3, 1], pages

seen = []
start = core.list_namespaced_config_map("py").metadata.resource_version
core.create_namespaced_config_map("py", {"metadata": {"name": "b"}})
core.delete_namespaced_config_map("b", "py")
for event in watch.Watch().stream(core.list_namespaced_config_map, "py", resource_version=start, field_selector="metadata.name=b", timeout_seconds=20):
    seen.append(event["type"])
    if event["type"] == "DELETED":
        break
assert seen == ["ADDED", "DELETED"], seen

version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object", "properties": {
    "spec": {"type": "object", "properties": {"size": {"type": "integer", "minimum": 1}}}}}}}
crds.create_custom_resource_definition({
    "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "fish.py.example.com"},
    "spec": {"group": "py.example.com", "scope": "Namespaced", "versions": [version],
             "names": {"plural": "fish", "kind": "Fish", "listKind": "FishList"}}})
for event in watch.Watch().stream(crds.list_custom_resource_definition, field_selector="metadata.name=fish.py.example.com", timeout_seconds=20):
    conditions = event["object"].status.conditions or [] if event["object"].status else []
    if any(c.type == "Established" and c.status == "True" for c in conditions):
        break
fish = {"apiVersion": "py.example.com/v1", "kind": "Fish", "metadata": {"name": "nemo"}, "spec": {"size": 1}}
custom.create_namespaced_custom_object("py.example.com", "v1", "py", "fish", fish)
try:
    custom.patch_namespaced_custom_object("py.example.com", "v1", "py", "fish", "nemo", {"spec": {"size": 0}})
    raise SystemExit("an invalid object was taken")
except ApiException as error:
    assert error.status == 422, error

everything = dynamic.DynamicClient(client.ApiClient())
kind = everything.resources.get(api_version="v1", kind="ConfigMap")
applied = kind.server_side_apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied", "namespace": "py"}, "data": {"a": "1"}}, field_manager="one")
try:
    kind.server_side_apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied", "namespace": "py"}, "data": {"a": "2"}}, field_manager="two")
    raise SystemExit("a conflict was not told")
except dynamic.exceptions.ConflictError:
    pass

crds.delete_custom_resource_definition("fish.py.example.com")
core.delete_namespace("py")
print("all is well")
