//! The straight line: [`ApiServer::handle`] takes a request from its first line to its answer, one early return
//! after the other. Read it from top to bottom.

mod read;

pub use read::{MAX_BODY_BYTES, RequestBody, decode_body, read_object};

use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Status;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode};
use resources::Verb;
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use read::read_delete_options;

use crate::admission::webhook::client::WebhookClient;
use crate::aggregation::Aggregation;
use crate::audit::{self, Auditor};
use crate::authn::{ANONYMOUS, Authenticators, Clock, Random, TokenIssuer, UNAUTHENTICATED, impersonate};
use crate::authz::forbidden;
use crate::body::{Body, Response};
use crate::encode::{self, Encoder, EventEncoder, Include, Outcome};
use crate::extensions;
use crate::flowcontrol::{Classified, FlowControl, Seat};
use crate::negotiate::Forms;
use crate::options::{ListOptions, WriteOptions};
use crate::registry::call::Call;
use crate::registry::{Registry, Resource};
use crate::remote::outbound::Peers;
use crate::remote::resolve::Resolver;
use crate::request::RequestInfo;
use crate::seams::{Admit, Authenticate, Authorize, Decision, UserInfo};
use crate::services::Services;
use crate::special::part::Part;
use crate::{aggregation, discovery, expiry, flowcontrol, health, metrics, openapi, remote, special};

pub struct Config {
    pub authenticate: Arc<dyn Authenticate>,
    pub authorize: Arc<dyn Authorize>,
    pub admit: Arc<dyn Admit>,
    /// Without it, there are no ServiceAccount tokens.
    pub issuer: Option<Arc<TokenIssuer>>,
    /// Who knows whom a token names, for TokenReview.
    pub review_token: Option<Arc<Authenticators>>,
    /// The ranges of cluster addresses, one a family, that of the first being the usual one: address and prefix
    /// length.
    pub service_cidrs: Vec<(IpAddr, u8)>,
    pub node_ports: RangeInclusive<u16>,
    /// Where this server is reached, for discovery and the `kubernetes` Service.
    pub advertise: (IpAddr, u16),
    /// How this server shows itself to kubelets; without it, their certificates are not checked and it shows none.
    pub kubelet_tls: Option<Arc<rustls::ClientConfig>>,
    /// How this server shows itself to aggregated API servers, which then believe whom it names.
    pub front_proxy: Option<Arc<dyn rustls::client::ResolvesClientCert>>,
    /// How many requests run at once: upstream's --max-requests-inflight and --max-mutating-requests-inflight
    /// together.
    pub max_in_flight: u32,
    /// The authorities that others need to check those whom this server believes: keys and PEM texts of
    /// `kube-system/extension-apiserver-authentication`.
    pub authentication_data: Vec<(String, String)>,
    /// How long events are kept after they were last written.
    pub event_ttl: Duration,
    /// What is noted of requests, and where.
    pub audit: Option<Auditor>,
    /// In which forms objects come and go.
    pub forms: Forms,
    pub clock: Clock,
    pub random: Random,
}

pub struct ApiServer {
    pub registry: Arc<Registry>,
    pub config: Config,
    pub services: Services,
    /// Other API servers, and what they serve.
    pub aggregation: Aggregation,
    /// The way to webhooks, also for conversions.
    pub webhooks: WebhookClient,
    pub flow_control: FlowControl,
    pub health: health::Health,
    pub metrics: metrics::Metrics,
    pub openapi: openapi::Documents,
    /// What nodes were last known to use.
    pub resource_metrics: special::resource_metrics::Samples,
    pub shutdown: CancellationToken,
    /// Tunnels that outlive their requests.
    pub tasks: tokio_util::task::TaskTracker,
}

/// The other end of a request.
pub enum Peer {
    /// A connection, with the client's verified certificates.
    Remote { certificates: Arc<[CertificateDer<'static>]>, address: std::net::SocketAddr },
    /// A part in the same process, which says who it is.
    Local(UserInfo),
}

/// A request as it goes down the line.
pub struct Asked {
    pub info: RequestInfo,
    pub parts: http::request::Parts,
    pub body: RequestBody,
    pub user: UserInfo,
}

/// What is noted of a request on its way, for its answer.
#[derive(Default)]
pub struct Notes {
    pub warnings: Vec<String>,
    classified: Option<Classified>,
    /// What it is counted as.
    target: Option<metrics::Target>,
    pub audit: audit::Trail,
}

impl Notes {
    /// Takes what a write has to say, however it ended.
    pub fn take(&mut self, call: &mut Call<'_>) {
        self.warnings.append(&mut call.warnings);
        self.audit.annotate(std::mem::take(&mut call.annotations));
    }
}

/// Where a request ends that names a resource.
enum Route {
    Part(Part),
    Special,
}

impl ApiServer {
    /// [`Registry::run`] must be running.
    pub fn new(registry: Arc<Registry>, config: Config, shutdown: CancellationToken) -> Arc<Self> {
        let services = Services::new(&config.service_cidrs, config.node_ports.clone());
        let peers = Arc::new(Peers::new(Resolver::new(registry.clone()), config.front_proxy.clone()));
        registry.connect(WebhookClient::new(peers.clone()), config.random.clone());
        let server = Arc::new(ApiServer {
            registry,
            services,
            webhooks: WebhookClient::new(peers.clone()),
            aggregation: Aggregation::new(peers),
            flow_control: FlowControl::new(config.max_in_flight),
            config,
            health: health::Health::default(),
            metrics: metrics::Metrics::default(),
            openapi: openapi::Documents::default(),
            resource_metrics: special::resource_metrics::Samples::default(),
            shutdown,
            tasks: tokio_util::task::TaskTracker::new(),
        });
        server.tasks.spawn(extensions::run(server.clone()));
        let audit = server.config.audit.as_ref();
        if let Some(delivery) = audit.and_then(|audit| audit.sink.background(server.shutdown.clone())) {
            server.tasks.spawn(delivery);
        }
        server.tasks.spawn(expiry::run(server.clone()));
        server
    }

    /// Seconds since the epoch.
    pub fn now(&self) -> i64 {
        (self.config.clock)().as_second()
    }

    pub fn random_bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        (self.config.random)(&mut bytes);
        bytes
    }

    /// Answers a request, whatever it is.
    pub async fn handle(self: &Arc<Self>, request: Request<RequestBody>, peer: Peer) -> Response {
        let (parts, body) = request.into_parts();
        let head = parts.method == Method::HEAD;
        let accepts_gzip = encode_gzip(&parts);
        let accepted = parts.headers.get(http::header::ACCEPT).cloned();
        let asked = self.metrics.asked(&parts.method);
        let audit = audit::Trail::of(&parts.headers, || self.random_bytes());
        let mut notes = Notes { audit, ..Default::default() };
        let response = match self.answer(parts, body, peer, &mut notes).await {
            Ok(response) => response,
            Err(status) => {
                notes.audit.failed(&status);
                encode::failure(&status, accepted.as_ref(), self.config.forms)
            }
        };
        let mut response = notes.audit.answered(response).await;
        if accepts_gzip {
            response = crate::body::compress(response);
        }
        for warning in notes.warnings {
            if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{}\"", escape(&warning))) {
                response.headers_mut().append(http::header::WARNING, value);
            }
        }
        if head {
            *response.body_mut() = Body::empty();
        }
        response
            .headers_mut()
            .insert(http::header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        if let Some(classified) = notes.classified {
            classified.write(response.headers_mut());
        }
        asked.answered(response.status(), notes.target);
        response
    }

    async fn answer(
        self: &Arc<Self>,
        mut parts: http::request::Parts,
        body: RequestBody,
        peer: Peer,
        notes: &mut Notes,
    ) -> Result<Response, Status> {
        let mut info = RequestInfo::new(&parts.method, &parts.uri)?;
        info.name_by_selector();
        let user = self.identify(&mut parts, &info, peer, notes).await?;
        let _seat = match self.seat(&user, &info, notes).await {
            Ok(seat) => seat,
            Err(refusal) => return Ok(refusal),
        };
        let decided = self.config.authorize.authorize(&user, &info.attributes).decided().await;
        match (decided.decision, decided.error) {
            (Decision::Allow { reason }, _) => notes.audit.authorized("allow", &reason),
            (_, Some(error)) => {
                notes
                    .audit
                    .annotate(vec![audit::Annotation::new(audit::AUTHORIZATION_REASON, "internal error")]);
                return Ok(encode::internal_error(&parts.uri, &error));
            }
            (Decision::Deny { reason } | Decision::NoOpinion { reason }, None) => {
                notes.audit.authorized("forbid", &reason);
                return Err(forbidden(&user, &info.attributes, &reason));
            }
        }
        let asked = Asked { info, parts, body, user };
        let attributes = &asked.info.attributes;
        if let Some(service) = self.aggregation.service_for(&*self.registry, attributes) {
            return aggregation::forward(self, &service, asked).await;
        }
        let table = self.registry.table();
        if !attributes.is_resource {
            let in_api = is_api(&table, asked.parts.uri.path());
            return match self.other_path(asked).await {
                Err(status) if !in_api && status == Status::page_not_found() => Ok(encode::no_page()),
                answer => answer,
            };
        }
        let found = table.find(&attributes.group, &attributes.version, &attributes.resource);
        if found.is_none() && !is_api(&table, asked.parts.uri.path()) {
            return Ok(encode::no_page());
        }
        let resource = found.cloned().ok_or_else(Status::page_not_found)?;
        notes.target = Some(metrics::Target::new(&resource, attributes));
        notes.warnings.extend(resource.def.deprecation.iter().map(ToString::to_string));
        match self.route(&resource, &asked)? {
            Route::Special => special::handle(self, &resource, asked, notes).await,
            Route::Part(part) => match attributes.verb.as_str() {
                "get" | "list" | "watch" => self.read(&resource, asked).await,
                _ => self.write(&resource, part, asked, notes).await,
            },
        }
    }

    /// Who asks, in whose name. The audit log notes both.
    async fn identify(
        &self,
        parts: &mut http::request::Parts,
        info: &RequestInfo,
        peer: Peer,
        notes: &mut Notes,
    ) -> Result<UserInfo, Status> {
        let auditor = self.config.audit.as_ref();
        let clock = &self.config.clock;
        let (certificates, address) = match peer {
            Peer::Local(user) => {
                if let Some(auditor) = auditor {
                    notes.audit.begin(auditor, parts, info, &user, None, clock).await?;
                }
                return Ok(user);
            }
            Peer::Remote { certificates, address } => (certificates, address),
        };
        let found = self.config.authenticate.authenticate(&parts.headers, &parts.uri, &certificates).await;
        let user = match (found, auditor) {
            (Ok(found), _) => found.unwrap_or_else(anonymous),
            (Err(status), None) => return Err(status),
            (Err(status), Some(auditor)) => {
                let shows_certificate = !certificates.is_empty();
                let failure = audit::Failure { code: status.code, shows_certificate };
                notes.audit.unauthenticated(auditor, parts, info, failure, address.ip(), clock()).await;
                return Err(status);
            }
        };
        let Some(auditor) = auditor else {
            return impersonate(user, &parts.headers, &*self.config.authorize).await;
        };
        notes.audit.begin(auditor, parts, info, &user, Some(address.ip()), clock).await?;
        let acting = impersonate(user.clone(), &parts.headers, &*self.config.authorize).await?;
        if acting != user {
            notes.audit.impersonated(&acting);
        }
        Ok(acting)
    }

    /// The seats that the request needs; the answer when it has to come back later.
    async fn seat(
        &self,
        user: &UserInfo,
        info: &RequestInfo,
        notes: &mut Notes,
    ) -> Result<Option<Seat>, Response> {
        if flowcontrol::is_long_running(&info.attributes) {
            return Ok(None);
        }
        let width = || flowcontrol::width(&self.registry.table(), info);
        let (classified, seat) =
            self.flow_control.admit(&*self.registry, user, &info.attributes, width).await;
        notes.classified = classified;
        seat.map_err(|flowcontrol::Refused| encode::too_many_requests())
    }

    /// Paths that name no resource.
    async fn other_path(self: &Arc<Self>, asked: Asked) -> Result<Response, Status> {
        let path = asked.parts.uri.path().trim_end_matches('/').to_owned();
        let routed = ["version", "api", "apis", ".well-known", "openid"];
        let first = path.split('/').nth(1).unwrap_or_default();
        if asked.parts.method == Method::HEAD && routed.contains(&first) {
            return Err(Status::method_not_allowed());
        }
        match path.split('/').nth(1).unwrap_or_default() {
            "healthz" | "livez" | "readyz" | "version" | "metrics" | ".well-known" => {
                health::handle(self, &asked, &path)
            }
            "openid" => health::handle(self, &asked, &path),
            "openapi" => openapi::handle(self, &asked, &path),
            "debug" => flowcontrol::debug(self, &path),
            "" | "api" | "apis" => discovery::handle(self, &asked, &path),
            _ => Err(Status::page_not_found()),
        }
    }

    /// Checks that the table has the route.
    fn route(&self, resource: &Resource, asked: &Asked) -> Result<Route, Status> {
        let (def, attributes) = (&resource.def, &asked.info.attributes);
        let by_name = !attributes.name.is_empty() && !matches!(attributes.verb.as_str(), "list" | "watch");
        let in_namespace =
            !(attributes.namespace.is_empty() || (def.plural == "namespaces" && def.group.is_empty()));
        if in_namespace && !def.namespaced() {
            return Err(Status::page_not_found());
        }
        // Nothing follows a subresource but what it is a way to.
        if asked.info.rest.as_deref().is_some_and(|rest| rest != "/") && attributes.subresource != "proxy" {
            return Err(Status::page_not_found());
        }
        if def.namespaced() && !in_namespace {
            match attributes.verb.as_str() {
                "list" | "watch" => {}
                _ if by_name => return Err(Status::page_not_found()),
                _ => return Err(Status::method_not_allowed()),
            }
        }
        let verbs = if attributes.subresource.is_empty() {
            &def.verbs
        } else {
            &def.subresource(&attributes.subresource)
                .ok_or_else(|| match def.custom {
                    // Whatever is below an object of a custom kind is looked for there.
                    Some(_) => Status::not_found(&def.group_resource(), &attributes.name),
                    None => Status::page_not_found(),
                })?
                .verbs
        };
        let verb = [
            Verb::Create,
            Verb::Delete,
            Verb::DeleteCollection,
            Verb::Get,
            Verb::List,
            Verb::Patch,
            Verb::Update,
            Verb::Watch,
        ]
        .into_iter()
        .find(|verb| verb.as_str() == attributes.verb);
        let streams = matches!(&*attributes.subresource, "proxy" | "exec" | "attach" | "portforward" | "log");
        if !streams && !verb.is_some_and(|verb| verbs.contains(&verb)) {
            return Err(Status::method_not_allowed());
        }
        if attributes.verb == "create" && !attributes.name.is_empty() && attributes.subresource.is_empty() {
            return Err(Status::method_not_allowed());
        }
        if matches!(attributes.verb.as_str(), "update" | "patch") && attributes.name.is_empty() {
            return Err(Status::method_not_allowed());
        }
        // Upstream's router knows GET alone, but for proxies; custom resources do not go through it.
        if def.custom.is_none() && attributes.subresource != "proxy" {
            if asked.parts.method == Method::HEAD {
                return Err(Status::method_not_allowed());
            }
            if !streams {
                let whole = attributes.verb == "list" || attributes.verb == "watch";
                self.config.forms.check_produced(&asked.parts.headers, whole)?;
            }
        }
        match Part::of(&attributes.subresource) {
            Some(part) if resource.cache.is_some() => Ok(Route::Part(part)),
            _ => Ok(Route::Special),
        }
    }

    pub fn encoder(&self, resource: &Arc<Resource>, asked: &Asked) -> Result<Encoder, Status> {
        let forms = self.config.forms;
        let negotiated = match resource.def.custom {
            Some(_) => forms.accept_custom(&asked.parts.headers)?,
            None => forms.accept(&asked.parts.headers, true)?,
        };
        let include = match asked.info.query.get("includeObject").unwrap_or_default() {
            "None" => Include::None,
            "Object" => Include::Object,
            _ => Include::Metadata,
        };
        Ok(Encoder { resource: resource.clone(), negotiated, include, now: self.now() })
    }

    async fn read(self: &Arc<Self>, resource: &Arc<Resource>, asked: Asked) -> Result<Response, Status> {
        let encoder = self.encoder(resource, &asked)?;
        let attributes = &asked.info.attributes;
        let namespace = if resource.def.namespaced() { attributes.namespace.as_str() } else { "" };
        if attributes.verb == "get" {
            let object = self.registry.get(resource, namespace, &attributes.name)?;
            let object =
                object.ok_or_else(|| Status::not_found(&resource.def.group_resource(), &attributes.name))?;
            let object = self.registry.view(resource, object).await?;
            return encoder.outcome(StatusCode::OK, &Outcome::Stored(object));
        }
        let watch = attributes.verb == "watch";
        let mut options = ListOptions::parse(&asked.info.query, &resource.def, watch)?;
        if asked.info.watch_path && !attributes.name.is_empty() {
            let by_name = format!("metadata.name={}", attributes.name);
            options.fields =
                apimachinery::selector::FieldSelector::parse(&by_name).map_err(Status::bad_request)?;
        }
        if !watch {
            return encoder.list(self.registry.list(resource, namespace, &options).await?);
        }
        self.config.forms.check_stream(encoder.negotiated)?;
        let encoder = EventEncoder::new(encoder, self.config.clock.clone());
        let content_type = encoder.content_type();
        let watcher =
            self.registry.watch(resource, namespace, options, encoder, self.shutdown.clone()).await?;
        let open = self.metrics.watching();
        let frames = futures::stream::unfold((watcher, open), |(mut watcher, open)| async move {
            watcher.next().await.map(|frames| (Ok(frames), (watcher, open)))
        });
        let mut response = Response::new(Body::Stream(Box::pin(frames)));
        if let Ok(value) = HeaderValue::from_str(&content_type) {
            response.headers_mut().insert(http::header::CONTENT_TYPE, value);
        }
        Ok(response)
    }

    async fn write(
        self: &Arc<Self>,
        resource: &Arc<Resource>,
        part: Part,
        asked: Asked,
        notes: &mut Notes,
    ) -> Result<Response, Status> {
        let encoder = self.encoder(resource, &asked)?;
        let Asked { info, parts, body, user } = asked;
        let body = body.read().await?;
        let asked = Asked { info, parts, body: RequestBody::Ready(body.clone()), user };
        notes.audit.sent(&resource.def, &asked, &body);
        let mut call = self.call(resource, &asked)?;
        let result = run(&mut call, part, &asked, &body).await;
        notes.take(&mut call);
        match result? {
            Written::One(outcome, code) => {
                encoder.outcome(code, &self.registry.shown(resource, outcome).await?)
            }
            Written::Many(listing) => encoder.list(listing),
        }
    }

    /// What a write needs to know of its request.
    pub fn call<'a>(&'a self, resource: &'a Arc<Resource>, asked: &'a Asked) -> Result<Call<'a>, Status> {
        let attributes = &asked.info.attributes;
        let kind = match attributes.verb.as_str() {
            "create" => "CreateOptions",
            "patch" => "PatchOptions",
            _ => "UpdateOptions",
        };
        let deletes = attributes.verb.starts_with("delete");
        let options =
            if deletes { WriteOptions::default() } else { WriteOptions::parse(&asked.info.query, kind)? };
        let agent = asked.parts.headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok());
        let manager = match options.field_manager.as_str() {
            "" => schema::apply::manager_of_user_agent(agent.unwrap_or_default()),
            manager => manager.to_owned(),
        };
        Ok(Call {
            server: self,
            resource,
            attributes,
            user: &asked.user,
            options_value: options.to_value(kind),
            options,
            manager,
            warnings: Vec::new(),
            annotations: Vec::new(),
            applied: false,
            versioned: false,
        })
    }
}

/// What a write came to.
enum Written {
    One(Outcome, StatusCode),
    Many(crate::registry::list::Listing),
}

async fn run(call: &mut Call<'_>, part: Part, asked: &Asked, body: &Bytes) -> Result<Written, Status> {
    let headers = &asked.parts.headers;
    let name = asked.info.attributes.name.clone();
    let created = |created| if created { StatusCode::CREATED } else { StatusCode::OK };
    match asked.info.attributes.verb.as_str() {
        "create" => {
            let object = read_object(call, headers, body)?;
            Ok(Written::One(call.create(object).await?, StatusCode::CREATED))
        }
        "update" => {
            let mut object = read_object(call, headers, body)?;
            call.check_update(&name, &mut object)?;
            let create = call.def().strategy.allow_create_on_update();
            let mut sent = Sent(object);
            let mut put = |_: &Value| Ok(sent.next());
            let (outcome, is_new) = call.update(&name, part, create, &mut put).await?;
            Ok(Written::One(outcome, created(is_new)))
        }
        "patch" => {
            let kind = call.server.config.forms.patch(headers, call.resource.definition.is_some())?;
            let reading = call.read_patch(kind, body)?;
            let (outcome, is_new) = call.patch(part, reading).await?;
            Ok(Written::One(outcome, created(is_new)))
        }
        _ => {
            let options = read_delete_options(call, asked, body)?;
            call.options.dry_run = options.dry_run;
            call.options_value = options.to_value();
            if asked.info.attributes.verb == "deletecollection" {
                let list = ListOptions::parse(&asked.info.query, call.def(), false)?;
                return Ok(Written::Many(call.delete_collection(&list, &options).await?));
            }
            let (outcome, deleted) = call.delete(&name, &options).await?;
            let accepted = !deleted && options.orphan_dependents == Some(false);
            Ok(Written::One(outcome, if accepted { StatusCode::ACCEPTED } else { StatusCode::OK }))
        }
    }
}

/// The object of a PUT, for each attempt to write it.
struct Sent(Value);

impl Sent {
    /// An object that says which version it is of is written at the first attempt or not at all: what is left of it
    /// is enough to be refused.
    fn next(&mut self) -> Value {
        let text = |field| crate::registry::metadata::text(&self.0, field);
        let (uid, version) = (text("uid"), text("resourceVersion"));
        if matches!(version, "" | "0") {
            return self.0.clone();
        }
        let rest = serde_json::json!({"metadata": {"uid": uid, "resourceVersion": version}});
        std::mem::replace(&mut self.0, rest)
    }
}

/// Whether there is an API at the path. Where there is none, upstream answers as any web server does.
fn is_api(table: &crate::registry::Table, path: &str) -> bool {
    path.starts_with("/api/")
        || path.strip_prefix("/apis/").is_some_and(|rest| {
            let group = rest.split('/').next().unwrap_or_default();
            let mut rows = table.rows().iter();
            rows.any(|resource| resource.def.group == group && resource.def.custom.is_none())
        })
}

/// Who shows no credentials.
pub fn anonymous() -> UserInfo {
    UserInfo { name: ANONYMOUS.into(), groups: vec![UNAUTHENTICATED.into()], ..Default::default() }
}

fn encode_gzip(parts: &http::request::Parts) -> bool {
    let encodings = parts.headers.get(http::header::ACCEPT_ENCODING).and_then(|v| v.to_str().ok());
    encodings.is_some_and(|list| list.split(',').any(|e| e.trim() == "gzip"))
}

fn escape(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .flat_map(|c| match c {
            '"' | '\\' => vec!['\\', c],
            c => vec![c],
        })
        .collect()
}

/// Sends a request on to a kubelet or a pod, for the subresources that stream.
pub async fn stream(
    server: &Arc<ApiServer>,
    resource: &Arc<Resource>,
    asked: Asked,
    notes: &mut Notes,
) -> Result<Response, Status> {
    remote::handle(server, resource, asked, notes).await
}
