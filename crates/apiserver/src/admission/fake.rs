//! A [`Lookup`] over a list of objects, for tests.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use apimachinery::{GroupKind, GroupResource, GroupVersion, GroupVersionKind, GroupVersionResource, Status};
use serde_json::Value;
use tokio::sync::watch;

use super::configuration::{Documents, Settings};
use super::selection::Selection;
use super::tree::text;
use super::{Chain, Context, PLUGINS};
use crate::audit::Annotation;
use crate::authn::Random;
use crate::authz::Authorizer;
use crate::seams::{AdmissionRequest, Lookup, Operation, UserInfo};

type Key = (String, String, String);

/// The objects, and the number of changes that made them so.
#[derive(Default)]
pub(crate) struct Fake {
    objects: Mutex<BTreeMap<Key, Arc<Value>>>,
    revision: watch::Sender<u64>,
}

/// The plural of a kind, as far as tests need it.
fn plural(kind: &str) -> String {
    let lower = kind.to_lowercase();
    if let Some(stem) = lower.strip_suffix('y') {
        return format!("{stem}ies");
    }
    match lower.strip_suffix('s') {
        Some(_) => format!("{lower}es"),
        None => format!("{lower}s"),
    }
}

fn kind_of(object: &Value) -> (GroupVersion, String) {
    let group_version =
        GroupVersion::parse(text(object, "apiVersion")).expect("a test object has an apiVersion");
    (group_version, text(object, "kind").to_owned())
}

fn key(resource: &GroupResource, namespace: &str, name: &str) -> Key {
    (resource.to_string(), namespace.to_owned(), name.to_owned())
}

impl Fake {
    pub(crate) fn new(objects: impl IntoIterator<Item = Value>) -> Arc<Self> {
        let fake = Arc::new(Fake::default());
        objects.into_iter().for_each(|object| fake.put(object));
        fake
    }

    pub(crate) fn put(&self, object: Value) {
        let (group_version, kind) = kind_of(&object);
        let resource = GroupResource::new(group_version.group, plural(&kind));
        let key = key(&resource, text(&object, "metadata.namespace"), text(&object, "metadata.name"));
        self.objects.lock().unwrap().insert(key, Arc::new(object));
        self.revision.send_modify(|revision| *revision += 1);
    }

    pub(crate) fn remove(&self, resource: &'static str, namespace: &str, name: &str) {
        self.objects.lock().unwrap().remove(&key(&GroupResource::from_static("", resource), namespace, name));
        self.revision.send_modify(|revision| *revision += 1);
    }
}

impl Lookup for Fake {
    fn get(&self, resource: &GroupResource, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.objects.lock().unwrap().get(&key(resource, namespace, name)).cloned()
    }

    fn list(&self, resource: &GroupResource, namespace: Option<&str>) -> Vec<Arc<Value>> {
        let resource = resource.to_string();
        let objects = self.objects.lock().unwrap();
        let wanted = |key: &Key| key.0 == resource && namespace.is_none_or(|namespace| namespace == key.1);
        objects.iter().filter(|(key, _)| wanted(key)).map(|(_, object)| object.clone()).collect()
    }

    fn revision(&self, _resource: &GroupResource) -> u64 {
        *self.revision.borrow()
    }

    fn changes(&self, _resource: &GroupResource) -> Option<watch::Receiver<u64>> {
        Some(self.revision.subscribe())
    }
}

pub(crate) fn user(name: &str, groups: &[&str]) -> UserInfo {
    UserInfo {
        name: name.to_owned(),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
        ..Default::default()
    }
}

pub(crate) fn node(name: &str) -> UserInfo {
    user(&format!("system:node:{name}"), &["system:nodes"])
}

/// Always the same bytes.
pub(crate) fn random() -> Random {
    Arc::new(|bytes: &mut [u8]| bytes.fill(7))
}

pub(crate) fn context(objects: impl IntoIterator<Item = Value>) -> Context {
    let lookup: Arc<dyn Lookup> = Fake::new(objects);
    let authorizer = Arc::new(Authorizer::new(lookup.clone()));
    Context { authorizer, lookup, random: random(), settings: Arc::default() }
}

/// With a document for each of these plugins.
pub(crate) fn configured(
    objects: impl IntoIterator<Item = Value>,
    documents: impl IntoIterator<Item = (&'static str, Value)>,
) -> Result<Context, String> {
    let documents: Vec<(&'static str, Value)> = documents.into_iter().collect();
    let names: Vec<String> = documents.iter().map(|(name, _)| (*name).to_owned()).collect();
    let selection = Selection::of_flags(&names, &[]).expect("the plugins are there");
    let settings = Settings::new(&Documents::of(documents), &selection, &random())?;
    Ok(Context { settings: Arc::new(settings), ..context(objects) })
}

pub(crate) fn chain(lookup: &Arc<Fake>) -> Chain {
    let lookup: Arc<dyn Lookup> = lookup.clone();
    Chain::new(lookup.clone(), Arc::new(Authorizer::new(lookup)), random())
}

/// A request as a test writes it.
pub(crate) struct Case {
    pub operation: Operation,
    pub user: UserInfo,
    pub subresource: &'static str,
    pub name: String,
    pub object: Value,
    pub old: Option<Value>,
    pub resource: Option<GroupVersionResource>,
    pub warnings: Vec<String>,
    pub annotations: Vec<Annotation>,
}

impl Case {
    fn new(operation: Operation, object: Value, old: Option<Value>) -> Self {
        let subject = old.as_ref().unwrap_or(&object);
        let name = match operation {
            Operation::Create => String::new(),
            _ => text(subject, "metadata.name").to_owned(),
        };
        Case {
            operation,
            user: user("jane", &[]),
            subresource: "",
            name,
            object,
            old,
            resource: None,
            warnings: Vec::new(),
            annotations: Vec::new(),
        }
    }

    pub(crate) fn create(object: Value) -> Self {
        Self::new(Operation::Create, object, None)
    }

    pub(crate) fn update(old: Value, object: Value) -> Self {
        Self::new(Operation::Update, object, Some(old))
    }

    pub(crate) fn delete(old: Value) -> Self {
        Self::new(Operation::Delete, Value::Null, Some(old))
    }

    pub(crate) fn by(mut self, user: UserInfo) -> Self {
        self.user = user;
        self
    }

    /// A request to a subresource of a resource, whatever kind is sent.
    pub(crate) fn sub(mut self, resource: &'static str, name: &str, subresource: &'static str) -> Self {
        self.resource = Some(GroupVersionResource::from_static("", "v1", resource));
        self.name = name.to_owned();
        self.subresource = subresource;
        self
    }

    pub(crate) fn run<T>(&mut self, run: impl FnOnce(&mut AdmissionRequest<'_>) -> T) -> T {
        let subject = self.old.as_ref().unwrap_or(&self.object);
        let (group_version, kind) = kind_of(subject);
        let GroupVersion { group, version } = group_version;
        let namespace = text(subject, "metadata.namespace").to_owned();
        let gvr = self
            .resource
            .clone()
            .unwrap_or_else(|| GroupVersionResource::new(group.clone(), version.clone(), plural(&kind)));
        let options = Value::Null;
        let kind = GroupKind::new(group, kind);
        run(&mut AdmissionRequest {
            operation: self.operation,
            user: &self.user,
            gvk: GroupVersionKind::new(kind.group, version, kind.kind),
            gvr,
            def: None,
            subresource: self.subresource,
            namespace: &namespace,
            name: &self.name,
            object: &mut self.object,
            old_object: self.old.as_ref(),
            dry_run: false,
            options: &options,
            warnings: &mut self.warnings,
            annotations: &mut self.annotations,
        })
    }

    /// Runs one plugin's two steps.
    pub(crate) fn admit(&mut self, context: &Context, plugin: &str) -> Result<(), Status> {
        let plugin = PLUGINS.iter().find(|p| p.name() == plugin).expect("the plugin is listed");
        self.run(|request| {
            plugin.mutate(context, request)?;
            plugin.validate(context, request)
        })
    }

    /// The message of the refusal; empty when admitted.
    pub(crate) fn refusal(mut self, context: &Context, plugin: &str) -> String {
        self.admit(context, plugin).err().map(|status| status.message).unwrap_or_default()
    }

    /// The object as the plugin leaves it.
    pub(crate) fn admitted(mut self, context: &Context, plugin: &str) -> Value {
        self.admit(context, plugin).expect("the request is admitted");
        self.object
    }
}
