//! What was chosen, as claims say it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use api::resource::v1::{
    AllocationResult, DeviceAllocationConfiguration, DeviceAllocationResult, DeviceRequestAllocationResult,
};
use api::{Object, Quantity};

use super::{Ask, Pick, Search};

impl<'a> Search<'a> {
    pub(super) fn results(&self) -> Result<Vec<AllocationResult>, String> {
        (0..self.claims.len()).map(|claim| self.result(claim)).collect()
    }

    fn result(&self, claim: usize) -> Result<AllocationResult, String> {
        let picks = &self.picks[claim];
        let results = picks.iter().enumerate().map(|(at, pick)| self.chosen(claim, at, pick)).collect();
        let config = self.config(claim);
        let devices = DeviceAllocationResult {
            results: Some(results),
            config: Some(config).filter(|config| !config.is_empty()),
        };
        let node_selector = self.node_selector(picks).map_err(|error| {
            format!("create NodeSelector for claim {}: {error}", self.claims[claim].name())
        })?;
        Ok(AllocationResult { devices: Some(devices), node_selector, ..Default::default() })
    }

    fn chosen(&self, claim: usize, at: usize, pick: &Pick) -> DeviceRequestAllocationResult {
        let ask = &self.asks[claim][pick.request][pick.way];
        let reachable = &self.reachable[pick.device];
        let consumed = pick.share.as_ref().filter(|share| !share.is_empty()).map(|share| {
            let amounts = share.iter().map(|(name, amount)| (name.clone(), Quantity(amount.to_string())));
            amounts.collect::<BTreeMap<_, _>>()
        });
        DeviceRequestAllocationResult {
            request: ask.full_name(),
            driver: reachable.id.driver.clone(),
            pool: reachable.id.pool.clone(),
            device: reachable.id.device.clone(),
            admin_access: ask.admin.then_some(true),
            tolerations: Some(ask.tolerations.to_vec()).filter(|tolerations| !tolerations.is_empty()),
            share_id: pick.share.as_ref().map(|_| share_id(self.claims[claim].uid(), &reachable.id, at)),
            consumed_capacity: consumed,
            binding_conditions: reachable.device.binding_conditions.clone(),
            binding_failure_conditions: reachable.device.binding_failure_conditions.clone(),
        }
    }

    /// The way that was taken for each request.
    fn taken(&self, claim: usize) -> impl Iterator<Item = (usize, &Ask<'a>)> {
        let ways = &self.asks[claim];
        ways.iter().enumerate().filter_map(move |(request, ways)| {
            let pick = self.picks[claim].iter().find(|pick| pick.request == request);
            Some((request, ways.get(pick.map_or(0, |pick| pick.way))?))
        })
    }

    /// The configuration of classes, then that of the claim.
    fn config(&self, claim: usize) -> Vec<DeviceAllocationConfiguration> {
        let mut all: Vec<DeviceAllocationConfiguration> = Vec::new();
        let mut of_class: BTreeMap<&str, std::ops::Range<usize>> = BTreeMap::new();
        for (_, ask) in self.taken(claim) {
            if let Some(known) = of_class.get(ask.class_name) {
                for config in &mut all[known.clone()] {
                    config.requests.get_or_insert_default().push(ask.full_name());
                }
                continue;
            }
            let start = all.len();
            all.extend(ask.class.config.iter().flatten().map(|config| DeviceAllocationConfiguration {
                source: "FromClass".into(),
                requests: Some(vec![ask.full_name()]),
                opaque: config.opaque.clone(),
            }));
            of_class.insert(ask.class_name, start..all.len());
        }
        let devices = self.claims[claim].spec.devices.as_ref();
        for config in devices.into_iter().flat_map(|devices| devices.config.iter().flatten()) {
            let meant = self.taken(claim).filter(|(_, ask)| ask.is_meant(config.requests.as_ref())).count();
            let times = if config.requests.as_ref().is_none_or(Vec::is_empty) { 1 } else { meant };
            for _ in 0..times {
                all.push(DeviceAllocationConfiguration {
                    source: "FromClaim".into(),
                    requests: config.requests.clone(),
                    opaque: config.opaque.clone(),
                });
            }
        }
        all
    }

    /// From which nodes the chosen devices can be reached; none for all.
    fn node_selector(&self, picks: &[Pick]) -> Result<Option<NodeSelector>, String> {
        let mut term = NodeSelectorTerm::default();
        for reachable in picks.iter().map(|pick| &self.reachable[pick.device]) {
            let spec = &reachable.slice.spec;
            let (name, selector) = match spec.per_device_node_selection {
                Some(true) => (&reachable.device.node_name, &reachable.device.node_selector),
                _ => (&spec.node_name, &spec.node_selector),
            };
            if name.is_some() || reachable.device.binds_to_node == Some(true) {
                let this = NodeSelectorRequirement {
                    key: "metadata.name".into(),
                    operator: "In".into(),
                    values: Some(vec![self.node.name().to_owned()]),
                };
                let term = NodeSelectorTerm { match_fields: Some(vec![this]), ..Default::default() };
                return Ok(Some(NodeSelector { node_selector_terms: vec![term] }));
            }
            match selector.as_ref().map(|selector| selector.node_selector_terms.as_slice()) {
                None | Some([]) => {}
                Some([one]) => {
                    add(&mut term.match_fields, one.match_fields.as_deref());
                    add(&mut term.match_expressions, one.match_expressions.as_deref());
                }
                Some(more) => {
                    let count = more.len();
                    return Err(format!("unsupported ResourceSlice.NodeSelector with {count} terms"));
                }
            }
        }
        let asks = term.match_fields.is_some() || term.match_expressions.is_some();
        Ok(asks.then(|| NodeSelector { node_selector_terms: vec![term] }))
    }
}

/// Adds what is not there yet.
fn add(to: &mut Option<Vec<NodeSelectorRequirement>>, from: Option<&[NodeSelectorRequirement]>) {
    for requirement in from.unwrap_or_default() {
        let known = to.get_or_insert_default();
        if !known.contains(requirement) {
            known.push(requirement.clone());
        }
    }
}

/// Tells the shares of a device apart: of the form of a random UUID, and the same for the same share.
fn share_id(claim: &str, device: &super::DeviceId, at: usize) -> String {
    let half = |which: u8| {
        let mut hasher = DefaultHasher::new();
        (claim, device, at, which).hash(&mut hasher);
        hasher.finish()
    };
    let (high, low) = (half(0), half(1));
    format!(
        "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xfff,
        0x8000 | ((low >> 48) & 0x3fff),
        low & 0xffff_ffff_ffff
    )
}
