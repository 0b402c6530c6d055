use std::sync::Arc;

use api::resource::v1::{DeviceClass, ResourceSlice};
use serde_json::{Value, json};

use super::*;

/// Devices `gpu-N` with a model, an index, memory, and whatever else `more` says of them.
fn slice(node: Value, devices: &[(&str, Value)]) -> Value {
    let devices: Vec<Value> = devices
        .iter()
        .enumerate()
        .map(|(at, (model, more))| {
            let mut device = json!({"name": format!("gpu-{at}"),
                "attributes": {"model": {"string": model}, "index": {"int": at}},
                "capacity": {"memory": {"value": "40Gi"}}});
            for (key, value) in more.as_object().into_iter().flatten() {
                device[key] = value.clone();
            }
            device
        })
        .collect();
    let mut spec = json!({"driver": "gpu.example.com", "devices": devices,
        "pool": {"name": "node-1", "generation": 1, "resourceSliceCount": 1}});
    for (key, value) in node.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    json!({"metadata": {"name": "slice"}, "spec": spec})
}

fn here(devices: &[(&str, Value)]) -> Value {
    slice(json!({"nodeName": "node-1"}), devices)
}

fn world(slice: Value) -> Devices {
    let mut devices = Devices::default();
    devices.set_slice("slice", Some(Arc::new(ResourceSlice::from_value(slice).unwrap())));
    let class = json!({"metadata": {"name": "gpu"},
        "spec": {"selectors": [{"cel": {"expression": "device.driver == 'gpu.example.com'"}}]}});
    let class = DeviceClass::from_value(class).unwrap();
    devices.set_class("gpu", Some(Arc::new(class)));
    devices
}

fn claim(name: &str, devices: Value) -> ResourceClaim {
    let claim = json!({"metadata": {"name": name, "namespace": "default", "uid": name},
        "spec": {"devices": devices}});
    ResourceClaim::from_value(claim).unwrap()
}

fn node() -> Node {
    Node::from_value(json!({"metadata": {"name": "node-1"}})).unwrap()
}

fn exactly(mut request: Value) -> Value {
    request["deviceClassName"] = "gpu".into();
    json!({"name": "r", "exactly": request})
}

/// The devices that claims get, as `request=device`; or why none.
fn chosen(world: &Devices, claims: &[&ResourceClaim]) -> String {
    match allocate(world, &Selectors::default(), &node(), claims) {
        Err(error) => error,
        Ok(None) => "none".into(),
        Ok(Some(allocations)) => {
            let results =
                allocations.iter().flat_map(|a| a.devices.iter().flat_map(|d| d.results.iter().flatten()));
            results.map(|r| format!("{}={}", r.request, r.device)).collect::<Vec<_>>().join(" ")
        }
    }
}

fn check(slice: Value, devices: Value, expected: &str) {
    assert_eq!(chosen(&world(slice), &[&claim("c", devices.clone())]), expected, "{devices}");
}

fn cel(expression: &str) -> Value {
    json!([{"cel": {"expression": expression}}])
}

#[test]
fn requests_choose_by_class_selector_and_count() {
    let two = || here(&[("a", json!({})), ("b", json!({}))]);
    check(two(), json!({"requests": [exactly(json!({}))]}), "r=gpu-0");
    check(two(), json!({"requests": [exactly(json!({"count": 2}))]}), "r=gpu-0 r=gpu-1");
    check(two(), json!({"requests": [exactly(json!({"count": 3}))]}), "none");
    check(two(), json!({"requests": [exactly(json!({"allocationMode": "All"}))]}), "r=gpu-0 r=gpu-1");
    let b = cel("device.attributes['gpu.example.com'].model == 'b'");
    check(two(), json!({"requests": [exactly(json!({"selectors": b}))]}), "r=gpu-1");
    let bad = cel("device.attributes['gpu.example.com'].x == 'b'");
    check(
        two(),
        json!({"requests": [exactly(json!({"selectors": bad}))]}),
        "claim default/c: selector #0: CEL runtime error: no such key: x",
    );
    check(
        slice(json!({"nodeName": "node-2"}), &[("a", json!({}))]),
        json!({"requests": [exactly(json!({}))]}),
        "none",
    );
    check(
        slice(json!({"allNodes": true}), &[("a", json!({}))]),
        json!({"requests": [exactly(json!({}))]}),
        "r=gpu-0",
    );
}

#[test]
fn the_first_available_way_is_taken() {
    let ways = |first: &str| {
        let way = |name: &str, model: &str| {
            json!({"name": name, "deviceClassName": "gpu",
                "selectors": cel(&format!("device.attributes['gpu.example.com'].model == '{model}'"))})
        };
        json!({"requests": [{"name": "r", "firstAvailable": [way("best", first), way("good", "a")]}]})
    };
    check(here(&[("a", json!({})), ("b", json!({}))]), ways("b"), "r/best=gpu-1");
    check(here(&[("a", json!({})), ("b", json!({}))]), ways("c"), "r/good=gpu-0");
}

#[test]
fn constraints_hold_between_devices() {
    let three = || here(&[("a", json!({})), ("b", json!({})), ("b", json!({}))]);
    let two = exactly(json!({"count": 2}));
    let same = json!([{"matchAttribute": "gpu.example.com/model"}]);
    check(three(), json!({"requests": [two], "constraints": same}), "r=gpu-1 r=gpu-2");
    let distinct = json!([{"distinctAttribute": "gpu.example.com/model"}]);
    check(three(), json!({"requests": [two], "constraints": distinct}), "r=gpu-0 r=gpu-1");
    let three_distinct = exactly(json!({"count": 3}));
    check(three(), json!({"requests": [three_distinct], "constraints": distinct}), "none");
}

#[test]
fn taints_repel_requests_that_do_not_tolerate_them() {
    let tainted = json!({"taints": [{"key": "broken", "effect": "NoSchedule"}]});
    let slice = || here(&[("a", tainted.clone())]);
    check(slice(), json!({"requests": [exactly(json!({}))]}), "none");
    let tolerant = json!({"tolerations": [{"key": "broken", "operator": "Exists"}]});
    check(slice(), json!({"requests": [exactly(tolerant)]}), "r=gpu-0");
}

#[test]
fn partitions_share_the_counters_of_their_pool() {
    let partition = |slots: &str| json!({"consumesCounters": [{"counterSet": "card", "counters": {"slots": {"value": slots}}}]});
    let mut slice = here(&[("whole", partition("4")), ("half", partition("2")), ("half", partition("2"))]);
    slice["spec"]["sharedCounters"] = json!([{"name": "card", "counters": {"slots": {"value": "4"}}}]);
    let of = |model: &str, count: u32| {
        let selector = cel(&format!("device.attributes['gpu.example.com'].model == '{model}'"));
        json!({"requests": [exactly(json!({"count": count, "selectors": selector}))]})
    };
    check(slice.clone(), of("half", 2), "r=gpu-1 r=gpu-2");
    let mut world = world(slice);
    let mut first = claim("first", of("half", 1));
    let allocation = allocate(&world, &Selectors::default(), &node(), &[&first]).unwrap().unwrap().remove(0);
    first.status.get_or_insert_default().allocation = Some(allocation);
    world.set_claim("default/first", Some(Arc::new(first)));
    assert_eq!(chosen(&world, &[&claim("c", of("whole", 1))]), "none");
    assert_eq!(chosen(&world, &[&claim("c", of("half", 1))]), "r=gpu-2");
}

#[test]
fn a_shared_device_gives_until_its_capacity_is_gone() {
    let mut world = world(here(&[("a", json!({"allowMultipleAllocations": true}))]));
    let share =
        |amount: &str| json!({"requests": [exactly(json!({"capacity": {"requests": {"memory": amount}}}))]});
    let mut first = claim("first", share("30Gi"));
    let allocation = allocate(&world, &Selectors::default(), &node(), &[&first]).unwrap().unwrap().remove(0);
    let result = &allocation.devices.as_ref().unwrap().results.as_ref().unwrap()[0];
    assert_eq!(result.consumed_capacity.as_ref().unwrap()["memory"].0, "30Gi");
    assert_eq!(result.share_id.as_ref().unwrap().len(), 36);
    first.status.get_or_insert_default().allocation = Some(allocation);
    world.set_claim("default/first", Some(Arc::new(first)));
    assert_eq!(chosen(&world, &[&claim("c", share("11Gi"))]), "none");
    assert_eq!(chosen(&world, &[&claim("c", share("10Gi"))]), "r=gpu-0");
    world.set_claim("default/first", None);
    assert_eq!(chosen(&world, &[&claim("c", share("11Gi"))]), "r=gpu-0");
}

#[test]
fn a_taken_device_is_for_administrators_only() {
    let mut world = world(here(&[("a", json!({}))]));
    let plain = json!({"requests": [exactly(json!({}))]});
    let mut first = claim("first", plain.clone());
    assert_eq!(chosen(&world, &[&first, &claim("second", plain.clone())]), "none");
    let allocation = allocate(&world, &Selectors::default(), &node(), &[&first]).unwrap().unwrap().remove(0);
    let selector = serde_json::to_value(allocation.node_selector.as_ref().unwrap()).unwrap();
    assert_eq!(selector["nodeSelectorTerms"][0]["matchFields"][0]["values"], json!(["node-1"]));
    first.status.get_or_insert_default().allocation = Some(allocation);
    world.set_claim("default/first", Some(Arc::new(first)));
    assert_eq!(chosen(&world, &[&claim("c", plain)]), "none");
    assert_eq!(
        chosen(&world, &[&claim("c", json!({"requests": [exactly(json!({"adminAccess": true}))]}))]),
        "r=gpu-0"
    );
}

#[test]
fn a_pool_that_is_being_updated_is_left_alone() {
    let mut slice = here(&[("a", json!({}))]);
    slice["spec"]["pool"]["resourceSliceCount"] = 2.into();
    check(slice.clone(), json!({"requests": [exactly(json!({}))]}), "none");
    let words = "claim default/c, request r: asks for all devices, but resource pool gpu.example.com/node-1 is \
                 currently being updated";
    check(slice, json!({"requests": [exactly(json!({"allocationMode": "All"}))]}), words);
}
