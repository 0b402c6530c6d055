//! Which ids a container runs as: numbers and names resolved in the image's own passwd and group files.

use std::io::Read;
use std::path::Path;

use linux::beneath::Root;

/// The ids of a container's process.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct User {
    pub uid: u32,
    pub gid: u32,
    pub additional: Vec<u32>,
    pub home: String,
}

/// What the pod and the image ask for.
#[derive(Debug, Default)]
pub(crate) struct Wanted<'a> {
    pub uid: Option<i64>,
    pub gid: Option<i64>,
    pub username: &'a str,
    /// The image's `User`: `name`, `uid`, or either with `:group`.
    pub image: &'a str,
    pub supplemental: &'a [i64],
    /// Groups that the image gives the user count too, unless the policy is Strict.
    pub merge_image_groups: bool,
}

/// Larger files are not read: no honest image has them.
const MAX_FILE: u64 = 4 << 20;

/// Reads a root filesystem's passwd and group files; a missing file reads as empty.
pub(crate) fn account_files(rootfs: &Path) -> (String, String) {
    let read = |path: &str| {
        let mut text = Vec::new();
        let file = Root::open(rootfs).and_then(|root| root.read_file(Path::new(path))).ok()?;
        file.take(MAX_FILE).read_to_end(&mut text).ok()?;
        Some(String::from_utf8_lossy(&text).into_owned())
    };
    (read("/etc/passwd").unwrap_or_default(), read("/etc/group").unwrap_or_default())
}

/// Resolves what is wanted.
pub(crate) fn resolve(wanted: &Wanted<'_>, passwd: &str, group: &str) -> Result<User, String> {
    let (image_user, image_group) = wanted.image.split_once(':').unwrap_or((wanted.image, ""));
    let from_pod = wanted.uid.is_some() || !wanted.username.is_empty();
    // Upstream: cri-api's LinuxContainerSecurityContext.run_as_group; containerd's words
    if wanted.gid.is_some() && !from_pod {
        return Err("user group is specified without user".to_owned());
    }
    let named = match (wanted.uid, wanted.username) {
        (Some(uid), _) => uid.to_string(),
        (None, "") => image_user.to_owned(),
        (None, name) => name.to_owned(),
    };
    let entry = passwd.lines().find_map(|line| account(line, &named));
    let uid = match (&entry, named.as_str()) {
        (Some(entry), _) => entry.uid,
        (None, "") => 0,
        (None, number) => number
            .parse()
            .map_err(|_| format!("unable to find user {number}: no matching entries in passwd file"))?,
    };
    let entry = entry.or_else(|| passwd.lines().find_map(|line| account(line, &uid.to_string())));
    let gid = match wanted.gid {
        Some(gid) => u32::try_from(gid).map_err(|_| format!("group id {gid} is out of range"))?,
        None if !from_pod && !image_group.is_empty() => group_id(group, image_group)?,
        None => entry.as_ref().map_or(0, |entry| entry.gid),
    };
    let mut additional = vec![gid];
    if wanted.merge_image_groups
        && let Some(entry) = &entry
    {
        additional.extend(group.lines().filter_map(|line| membership(line, &entry.name)));
    }
    for id in wanted.supplemental {
        additional.push(u32::try_from(*id).map_err(|_| format!("group id {id} is out of range"))?);
    }
    additional.sort_unstable();
    additional.dedup();
    let home = entry.map(|entry| entry.home).filter(|home| !home.is_empty());
    let home = home.unwrap_or_else(|| if uid == 0 { "/root".into() } else { "/".into() });
    Ok(User { uid, gid, additional, home })
}

struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: String,
}

fn account(line: &str, wanted: &str) -> Option<Account> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, gid, _, home, ..] = fields[..] else { return None };
    if wanted.is_empty() || (name != wanted && uid != wanted) {
        return None;
    }
    Some(Account {
        name: name.to_owned(),
        uid: uid.parse().ok()?,
        gid: gid.parse().ok()?,
        home: home.to_owned(),
    })
}

fn group_id(group: &str, wanted: &str) -> Result<u32, String> {
    let by_name = group.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == wanted).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    by_name
        .or_else(|| wanted.parse().ok())
        .ok_or_else(|| format!("unable to find group {wanted}: no matching entries in group file"))
}

fn membership(line: &str, name: &str) -> Option<u32> {
    let fields: Vec<&str> = line.split(':').collect();
    let [_, _, gid, members] = fields[..] else { return None };
    members.split(',').any(|member| member == name).then(|| gid.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102:web:/srv:/bin/false\n";
    const GROUP: &str = "root:x:0:\nweb:x:102:\nlogs:x:7:web,root\n";

    #[test]
    fn users_come_from_pod_image_and_files() {
        let base = || Wanted { merge_image_groups: true, ..Wanted::default() };
        let cases: [(&str, Wanted<'_>, (u32, u32, &[u32], &str)); 7] = [
            ("nothing said", base(), (0, 0, &[0], "/root")),
            ("image name", Wanted { image: "web", ..base() }, (101, 102, &[7, 102], "/srv")),
            ("image name and group", Wanted { image: "web:logs", ..base() }, (101, 7, &[7], "/srv")),
            ("unknown number", Wanted { image: "5000", ..base() }, (5000, 0, &[0], "/")),
            (
                "pod over image",
                Wanted { image: "web:logs", uid: Some(0), ..base() },
                (0, 0, &[0, 7], "/root"),
            ),
            ("pod group", Wanted { uid: Some(9), gid: Some(10), ..base() }, (9, 10, &[10], "/")),
            (
                "strict",
                Wanted { image: "web", supplemental: &[55], merge_image_groups: false, ..base() },
                (101, 102, &[55, 102], "/srv"),
            ),
        ];
        for (name, wanted, (uid, gid, additional, home)) in cases {
            let user = resolve(&wanted, PASSWD, GROUP).unwrap();
            assert_eq!((user.uid, user.gid, user.home.as_str()), (uid, gid, home), "{name}");
            // Root is a member of `logs` by name.
            assert!(additional.iter().all(|id| user.additional.contains(id)), "{name}: {user:?}");
        }
        assert!(resolve(&Wanted { image: "ghost", ..base() }, PASSWD, GROUP).is_err());
        let alone = resolve(&Wanted { gid: Some(10), ..base() }, PASSWD, GROUP);
        assert_eq!(alone, Err("user group is specified without user".to_owned()));
    }
}
