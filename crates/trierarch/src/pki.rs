//! The cluster's certificates and keys, made at the first start and kept below the data directory.
//!
//! One authority vouches for everything but front proxies, which have their own; [`LEAVES`] is the table of what
//! it vouches for. All keys are ECDSA P-256.
//!
//! What always holds: a file is there whole or not at all; a key is written before the certificate that needs
//! it; keys are readable by their owner only. [`Pki::renew`] issues again what comes near its end or whose names
//! changed, so a timer that calls it keeps a server running for years. The authorities keep their keys when
//! their certificates are renewed: what they signed stays valid.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

const DAY_SECONDS: u64 = 24 * 60 * 60;

/// How long certificates are good for.
#[derive(Clone, Copy, Debug)]
pub struct Lives {
    pub authority: Duration,
    pub leaf: Duration,
}

impl Default for Lives {
    fn default() -> Self {
        let year = Duration::from_secs(365 * DAY_SECONDS);
        Lives { authority: 10 * year, leaf: year }
    }
}

/// Certificates begin a little in the past, for the clocks of others.
const BACKDATE_SECONDS: i64 = 5 * 60;

/// A certificate is issued again when less than this part of its life is left.
const RENEWAL_PART: i64 = 5;

/// By what the server and the node are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    pub node_name: String,
    pub host_name: String,
    pub node_ips: Vec<IpAddr>,
    /// The addresses that the `kubernetes` Service may have.
    pub service_ips: Vec<IpAddr>,
    /// `cluster.local`.
    pub cluster_domain: String,
    /// More names of the API server, as DNS names or addresses.
    pub extra: Vec<String>,
}

/// What a certificate is for. The order is that of [`LEAVES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leaf {
    ApiServer,
    /// With which the API server calls kubelets.
    ApiServerKubeletClient,
    /// With which the API server calls aggregated API servers.
    FrontProxyClient,
    KubeletServer,
    KubeletClient,
    Admin,
    ControllerManager,
    Scheduler,
    Proxy,
}

/// A row of the table of certificates.
struct LeafDef {
    leaf: Leaf,
    /// The file's name without `.crt` and `.key`.
    file: &'static str,
    serves: bool,
    front_proxy: bool,
    name: fn(&Names) -> String,
    organization: Option<&'static str>,
    sans: fn(&Names) -> Vec<String>,
}

const CLIENT: LeafDef = LeafDef {
    leaf: Leaf::Admin,
    file: "",
    serves: false,
    front_proxy: false,
    name: |_| String::new(),
    organization: None,
    sans: |_| Vec::new(),
};

/// All certificates that the authorities vouch for.
const LEAVES: [LeafDef; 9] = [
    LeafDef {
        leaf: Leaf::ApiServer,
        file: "apiserver",
        serves: true,
        name: |_| "kube-apiserver".to_owned(),
        sans: api_server_names,
        ..CLIENT
    },
    LeafDef {
        leaf: Leaf::ApiServerKubeletClient,
        file: "apiserver-kubelet-client",
        name: |_| "kube-apiserver-kubelet-client".to_owned(),
        organization: Some("system:masters"),
        ..CLIENT
    },
    LeafDef {
        leaf: Leaf::FrontProxyClient,
        file: "front-proxy-client",
        front_proxy: true,
        name: |_| "front-proxy-client".to_owned(),
        ..CLIENT
    },
    LeafDef {
        leaf: Leaf::KubeletServer,
        file: "kubelet-server",
        serves: true,
        name: |names| format!("system:node:{}", names.node_name),
        organization: Some("system:nodes"),
        sans: kubelet_names,
        ..CLIENT
    },
    LeafDef {
        leaf: Leaf::KubeletClient,
        file: "kubelet-client",
        name: |names| format!("system:node:{}", names.node_name),
        organization: Some("system:nodes"),
        ..CLIENT
    },
    LeafDef {
        leaf: Leaf::Admin,
        file: "admin",
        name: |_| "kubernetes-admin".to_owned(),
        organization: Some("system:masters"),
        ..CLIENT
    },
    LeafDef {
        leaf: Leaf::ControllerManager,
        file: "controller-manager",
        name: |_| "system:kube-controller-manager".to_owned(),
        ..CLIENT
    },
    LeafDef {
        leaf: Leaf::Scheduler,
        file: "scheduler",
        name: |_| "system:kube-scheduler".to_owned(),
        ..CLIENT
    },
    LeafDef { leaf: Leaf::Proxy, file: "proxy", name: |_| "system:kube-proxy".to_owned(), ..CLIENT },
];

fn api_server_names(names: &Names) -> Vec<String> {
    let domain = &names.cluster_domain;
    let mut all: Vec<String> = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"]
        .map(str::to_owned)
        .to_vec();
    all.push(format!("kubernetes.default.svc.{domain}"));
    all.push(names.host_name.clone());
    all.push(names.node_name.clone());
    all.extend(names.node_ips.iter().map(IpAddr::to_string));
    all.extend(names.service_ips.iter().map(IpAddr::to_string));
    all.push(Ipv4Addr::LOCALHOST.to_string());
    all.extend(names.extra.iter().cloned());
    all
}

fn kubelet_names(names: &Names) -> Vec<String> {
    let mut all = vec![names.node_name.clone(), names.host_name.clone(), "localhost".to_owned()];
    all.extend(names.node_ips.iter().map(IpAddr::to_string));
    all.push(Ipv4Addr::LOCALHOST.to_string());
    all
}

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// All that the cluster's parts prove themselves with.
pub struct Pki {
    dir: PathBuf,
    lives: Lives,
    authority: Pair,
    front_proxy_authority: Pair,
    leaves: BTreeMap<Leaf, Pair>,
    /// The PKCS#8 PEM of the key that signs ServiceAccount tokens.
    service_account_key: String,
}

impl Pki {
    /// Reads what is in `dir`, makes what is missing, and issues again what is due.
    pub fn load_or_create(dir: &Path, names: &Names, lives: Lives, now: jiff::Timestamp) -> Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("cannot create {}", dir.display()))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("cannot restrict {}", dir.display()))?;
        let mut pki = Pki {
            authority: authority(dir, "ca", "kubernetes-ca", lives, now)?,
            front_proxy_authority: authority(dir, "front-proxy-ca", "front-proxy-ca", lives, now)?,
            lives,
            leaves: BTreeMap::new(),
            service_account_key: service_account_key(dir)?,
            dir: dir.to_owned(),
        };
        for def in &LEAVES {
            let stored = (read(dir, &format!("{}.crt", def.file))?, read(dir, &format!("{}.key", def.file))?);
            if let (Some(certificate), Some(key)) = stored {
                pki.leaves.insert(def.leaf, Pair { certificate, key });
            }
        }
        pki.renew(names, now)?;
        Ok(pki)
    }

    /// Issues again what is due, and says what: servers and clients that use these take them anew. A list that
    /// is empty means that nothing changed.
    pub fn renew(&mut self, names: &Names, now: jiff::Timestamp) -> Result<Vec<Leaf>> {
        self.authority = authority(&self.dir, "ca", "kubernetes-ca", self.lives, now)?;
        self.front_proxy_authority =
            authority(&self.dir, "front-proxy-ca", "front-proxy-ca", self.lives, now)?;
        let mut renewed = Vec::new();
        for def in &LEAVES {
            let authority = if def.front_proxy { &self.front_proxy_authority } else { &self.authority };
            let pair = self.leaves.get(&def.leaf);
            if pair.is_some_and(|pair| is_good(def, pair, authority, names, now)) {
                continue;
            }
            let pair = issue(def, authority, names, self.lives, now)
                .with_context(|| format!("cannot issue {}", def.file))?;
            write_atomically(&self.dir.join(format!("{}.key", def.file)), pair.key.as_bytes(), 0o600)?;
            write_atomically(
                &self.dir.join(format!("{}.crt", def.file)),
                pair.certificate.as_bytes(),
                0o644,
            )?;
            self.leaves.insert(def.leaf, pair);
            renewed.push(def.leaf);
        }
        Ok(renewed)
    }

    /// When the next certificate is due.
    pub fn next_renewal(&self) -> Option<jiff::Timestamp> {
        let authorities = [&self.authority, &self.front_proxy_authority];
        let due =
            self.leaves.values().chain(authorities).filter_map(|pair| renewal(&pair.certificate)).min()?;
        jiff::Timestamp::from_second(due).ok()
    }

    pub fn pair(&self, leaf: Leaf) -> &Pair {
        self.leaves.get(&leaf).expect("every leaf is issued before a Pki is handed out")
    }

    /// As it is shown in handshakes: the API server's with its authority, so that a node that knows only the
    /// authority's hash finds the authority itself.
    pub fn shown(&self, leaf: Leaf) -> Pair {
        let mut pair = self.pair(leaf).clone();
        if leaf == Leaf::ApiServer {
            pair.certificate.push_str(self.authority());
        }
        pair
    }

    /// Where a certificate and its key lie.
    pub fn files(&self, leaf: Leaf) -> (PathBuf, PathBuf) {
        let def = LEAVES.iter().find(|def| def.leaf == leaf).expect("every leaf is in the table");
        (self.dir.join(format!("{}.crt", def.file)), self.dir.join(format!("{}.key", def.file)))
    }

    /// For who signs certificates that are requested by the API.
    ///
    /// Upstream: kube-controller-manager's --cluster-signing-duration
    pub fn signing_authority(&self) -> controllers::SigningAuthority {
        controllers::SigningAuthority {
            certificate_pem: self.authority.certificate.clone(),
            key_pem: self.authority.key.clone(),
            longest: self.lives.leaf,
        }
    }

    /// The authority's certificate, as PEM.
    pub fn authority(&self) -> &str {
        &self.authority.certificate
    }

    pub fn front_proxy_authority(&self) -> &str {
        &self.front_proxy_authority.certificate
    }

    pub fn service_account_key(&self) -> &str {
        &self.service_account_key
    }
}

/// `None` when there is no such file.
fn read(dir: &Path, file: &str) -> Result<Option<String>> {
    let path = dir.join(file);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Writes beside the file and puts it in its place, so that a crash leaves the old or the new.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let dir = path.parent().context("a file has a directory")?;
    let name = path.file_name().context("a file has a name")?.to_string_lossy();
    let beside = dir.join(format!(".{name}.new"));
    let write = || -> std::io::Result<()> {
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(dir)?.sync_all()
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

fn new_key() -> Result<KeyPair> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).context("cannot make a key")
}

fn service_account_key(dir: &Path) -> Result<String> {
    let path = dir.join("sa.key");
    if let Some(key) = read(dir, "sa.key")? {
        KeyPair::from_pem(&key).with_context(|| format!("{} is no private key", path.display()))?;
        return Ok(key);
    }
    let key = new_key()?;
    write_atomically(&dir.join("sa.pub"), key.public_key_pem().as_bytes(), 0o644)?;
    write_atomically(&path, key.serialize_pem().as_bytes(), 0o600)?;
    Ok(key.serialize_pem())
}

fn timestamp(seconds: i64) -> Result<Duration> {
    Ok(Duration::from_secs(u64::try_from(seconds).context("the clock stands before 1970")?))
}

/// What all certificates have: a subject, a time and a serial number of their own.
fn parameters(
    name: &str,
    organization: Option<&str>,
    now: jiff::Timestamp,
    life: Duration,
) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    let mut subject = DistinguishedName::new();
    if let Some(organization) = organization {
        subject.push(DnType::OrganizationName, organization);
    }
    subject.push(DnType::CommonName, name);
    params.distinguished_name = subject;
    let start = timestamp(now.as_second() - BACKDATE_SECONDS)?;
    params.not_before = rcgen::date_time_ymd(1970, 1, 1) + start;
    params.not_after = rcgen::date_time_ymd(1970, 1, 1) + start + life;
    let mut serial: [u8; 16] = rand::random();
    // A serial number is positive and has no leading zero byte.
    serial[0] = (serial[0] & 0x7f) | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// An authority as stored; a new one when there is none; a new certificate for the same key when it is due.
fn authority(dir: &Path, file: &str, name: &str, lives: Lives, now: jiff::Timestamp) -> Result<Pair> {
    let key_path = dir.join(format!("{file}.key"));
    let certificate_path = dir.join(format!("{file}.crt"));
    let certificate = read(dir, &format!("{file}.crt"))?;
    let key = match read(dir, &format!("{file}.key"))? {
        Some(key) => {
            KeyPair::from_pem(&key).with_context(|| format!("{} is no private key", key_path.display()))?
        }
        None if certificate.is_some() => bail!(
            "{} is missing beside its certificate: restore it, or remove the certificate to begin with a new authority",
            key_path.display()
        ),
        None => {
            let key = new_key()?;
            write_atomically(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
            key
        }
    };
    if let Some(certificate) = certificate {
        let due = renewal(&certificate)
            .with_context(|| format!("{} is no certificate", certificate_path.display()))?;
        if now.as_second() < due {
            return Ok(Pair { certificate, key: key.serialize_pem() });
        }
    }
    let mut params = parameters(name, None, now, lives.authority)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).context("cannot sign an authority")?.pem();
    write_atomically(&certificate_path, certificate.as_bytes(), 0o644)?;
    Ok(Pair { certificate, key: key.serialize_pem() })
}

fn issue(def: &LeafDef, authority: &Pair, names: &Names, lives: Lives, now: jiff::Timestamp) -> Result<Pair> {
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate, KeyPair::from_pem(&authority.key)?)?;
    let key = new_key()?;
    let mut params = parameters(&(def.name)(names), def.organization, now, lives.leaf)?;
    for name in (def.sans)(names).into_iter().collect::<BTreeSet<_>>() {
        params.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => {
                SanType::DnsName(name.clone().try_into().with_context(|| format!("{name:?} is no name"))?)
            }
        });
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![if def.serves {
        ExtendedKeyUsagePurpose::ServerAuth
    } else {
        ExtendedKeyUsagePurpose::ClientAuth
    }];
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// When a certificate ends, in seconds since 1970; `None` when it is none.
pub fn ends(certificate: &str) -> Option<i64> {
    let block = pem::parse(certificate).ok()?;
    let (_, certificate) = X509Certificate::from_der(block.contents()).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

/// When a certificate is due to be issued again, in seconds since 1970; `None` when it is none.
fn renewal(certificate: &str) -> Option<i64> {
    let block = pem::parse(certificate).ok()?;
    let (_, certificate) = X509Certificate::from_der(block.contents()).ok()?;
    let (start, end) =
        (certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp());
    Some(end - (end - start) / RENEWAL_PART)
}

/// Whether a stored certificate can go on: its time is not near its end, it says what it should, its key is the
/// one beside it and the authority signed it.
fn is_good(def: &LeafDef, pair: &Pair, authority: &Pair, names: &Names, now: jiff::Timestamp) -> bool {
    let check = || -> Option<bool> {
        let block = pem::parse(&pair.certificate).ok()?;
        let (_, certificate) = X509Certificate::from_der(block.contents()).ok()?;
        let authority = pem::parse(&authority.certificate).ok()?;
        let (_, authority) = X509Certificate::from_der(authority.contents()).ok()?;
        let key = KeyPair::from_pem(&pair.key).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next().and_then(|name| name.as_str().ok());
        let organization = subject.iter_organization().next().and_then(|name| name.as_str().ok());
        let wanted: BTreeSet<String> = (def.sans)(names).into_iter().collect();
        let signed = ring::signature::UnparsedPublicKey::new(
            &ring::signature::ECDSA_P256_SHA256_ASN1,
            &*authority.public_key().subject_public_key.data,
        )
        .verify(certificate.tbs_certificate.as_ref(), &certificate.signature_value.data)
        .is_ok();
        Some(
            now.as_second() < renewal(&pair.certificate)?
                && certificate.validity().not_before.timestamp() <= now.as_second()
                && name == Some((def.name)(names).as_str())
                && organization == def.organization
                && sans_of(&certificate) == wanted
                && *certificate.public_key().subject_public_key.data == *key.public_key_raw()
                && signed,
        )
    };
    check().unwrap_or(false)
}

fn sans_of(certificate: &X509Certificate<'_>) -> BTreeSet<String> {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return BTreeSet::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).ok().map(IpAddr::from);
            let v6 = <[u8; 16]>::try_from(*bytes).ok().map(IpAddr::from);
            v4.or(v6).map(|address| address.to_string())
        }
        _ => None,
    };
    extension.value.general_names.iter().filter_map(name).collect()
}

/// Writes a kubeconfig with everything in it: who has the file is the user.
pub fn write_kubeconfig(path: &Path, server: &str, authority: &str, user: &str, pair: &Pair) -> Result<()> {
    let encode = |pem: &str| STANDARD.encode(pem);
    let cluster = "trierarch";
    let config = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": cluster,
            "cluster": {"server": server, "certificate-authority-data": encode(authority)},
        }],
        "users": [{
            "name": user,
            "user": {
                "client-certificate-data": encode(&pair.certificate),
                "client-key-data": encode(&pair.key),
            },
        }],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user}}],
        "current-context": cluster,
    });
    let text = serde_saphyr::to_string(&config).context("cannot form the kubeconfig")?;
    write_atomically(path, text.as_bytes(), 0o600)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn names() -> Names {
        Names {
            node_name: "one".to_owned(),
            host_name: "host".to_owned(),
            node_ips: vec!["192.0.2.7".parse().unwrap()],
            service_ips: vec!["10.43.0.1".parse().unwrap()],
            cluster_domain: "cluster.local".to_owned(),
            extra: Vec::new(),
        }
    }

    fn at(seconds: u64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(1_800_000_000 + i64::try_from(seconds).unwrap()).unwrap()
    }

    #[test]
    fn a_second_start_finds_what_the_first_made() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::load_or_create(&dir.path().join("pki"), &names(), Lives::default(), at(0)).unwrap();
        let mut second =
            Pki::load_or_create(&dir.path().join("pki"), &names(), Lives::default(), at(DAY_SECONDS))
                .unwrap();
        assert_eq!(first.authority(), second.authority());
        assert_eq!(first.service_account_key(), second.service_account_key());
        for def in &LEAVES {
            assert_eq!(first.pair(def.leaf).certificate, second.pair(def.leaf).certificate, "{}", def.file);
        }
        assert_eq!(second.renew(&names(), at(2 * DAY_SECONDS)).unwrap(), []);
    }

    #[test]
    fn keys_are_for_their_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let pki = dir.path().join("pki");
        Pki::load_or_create(&pki, &names(), Lives::default(), at(0)).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&pki), 0o700);
        for entry in fs::read_dir(&pki).unwrap() {
            let path = entry.unwrap().path();
            let wanted = if path.extension().is_some_and(|e| e == "key") { 0o600 } else { 0o644 };
            assert_eq!(mode(&path), wanted, "{}", path.display());
        }
    }

    #[test]
    fn the_server_is_called_by_all_its_names() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::load_or_create(dir.path(), &names(), Lives::default(), at(0)).unwrap();
        let block = pem::parse(&pki.pair(Leaf::ApiServer).certificate).unwrap();
        let (_, certificate) = X509Certificate::from_der(block.contents()).unwrap();
        let wanted = [
            "10.43.0.1",
            "127.0.0.1",
            "192.0.2.7",
            "host",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
            "one",
        ];
        assert_eq!(sans_of(&certificate), wanted.map(str::to_owned).into());
    }

    #[test]
    fn new_names_renew_only_what_carries_them() {
        let dir = tempfile::tempdir().unwrap();
        let mut pki = Pki::load_or_create(dir.path(), &names(), Lives::default(), at(0)).unwrap();
        let moved = Names { node_ips: vec!["192.0.2.8".parse().unwrap()], ..names() };
        assert_eq!(pki.renew(&moved, at(60)).unwrap(), [Leaf::ApiServer, Leaf::KubeletServer]);
        assert_eq!(pki.renew(&moved, at(120)).unwrap(), []);
    }

    #[test]
    fn certificates_renew_in_the_last_fifth_of_their_life_and_authorities_keep_their_key() {
        let dir = tempfile::tempdir().unwrap();
        let mut pki = Pki::load_or_create(dir.path(), &names(), Lives::default(), at(0)).unwrap();
        assert_eq!(pki.renew(&names(), at(Lives::default().leaf.as_secs() / 5 * 4 - 600)).unwrap(), []);
        let due = pki.next_renewal().unwrap();
        assert_eq!(pki.renew(&names(), due).unwrap().len(), LEAVES.len());
        let old = pki.authority.clone();
        let late = at(Lives::default().authority.as_secs() / 5 * 4);
        pki.renew(&names(), late).unwrap();
        assert_ne!(pki.authority(), old.certificate);
        assert_eq!(pki.authority.key, old.key);
        let admin = &LEAVES[5];
        assert!(is_good(admin, pki.pair(Leaf::Admin), &old, &names(), late));
    }

    #[test]
    fn a_torn_start_is_finished_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::load_or_create(dir.path(), &names(), Lives::default(), at(0)).unwrap();
        fs::remove_file(dir.path().join("ca.crt")).unwrap();
        fs::write(dir.path().join("admin.key"), new_key().unwrap().serialize_pem()).unwrap();
        fs::write(dir.path().join(".proxy.key.new"), "half").unwrap();
        fs::remove_file(dir.path().join("proxy.key")).unwrap();
        let second = Pki::load_or_create(dir.path(), &names(), Lives::default(), at(60)).unwrap();
        assert_eq!(first.authority.key, second.authority.key);
        assert_eq!(
            first.pair(Leaf::Scheduler).certificate,
            second.pair(Leaf::Scheduler).certificate,
            "what the same key signed stays"
        );
        assert_ne!(first.pair(Leaf::Admin).certificate, second.pair(Leaf::Admin).certificate);
    }

    #[test]
    fn an_authority_without_its_key_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        Pki::load_or_create(dir.path(), &names(), Lives::default(), at(0)).unwrap();
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        let error = Pki::load_or_create(dir.path(), &names(), Lives::default(), at(60)).err().unwrap();
        assert!(error.to_string().contains("ca.key is missing"), "{error}");
    }

    #[test]
    fn a_kubeconfig_holds_everything() {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::load_or_create(&dir.path().join("pki"), &names(), Lives::default(), at(0)).unwrap();
        let path = dir.path().join("admin.kubeconfig");
        let server = "https://127.0.0.1:6443";
        write_kubeconfig(&path, server, pki.authority(), "admin", pki.pair(Leaf::Admin)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(&path).unwrap();
        let config: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(config["clusters"][0]["cluster"]["server"], server);
        assert_eq!(config["current-context"], "trierarch");
        let key = config["users"][0]["user"]["client-key-data"].as_str().unwrap();
        assert_eq!(STANDARD.decode(key).unwrap(), pki.pair(Leaf::Admin).key.as_bytes());
    }
}
