//! What exposes a secret's file to others than the daemon. [`exposures`] decides from values alone; [`warnings`] asks the
//! system for them.

use std::fs;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, User, geteuid};

use super::access::{ACCEPTED_MODES, Access};

/// A file's group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Readers {
    /// Its name, or its number if it has none.
    pub group: String,
    /// The users in it, whether it is their first group or a further one.
    pub members: Vec<String>,
}

/// Who may have what the daemon has, and whom the daemon lets ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DaemonIdentity {
    /// The daemon's user and root, by id.
    pub uids: Vec<u32>,
    /// The same by name.
    pub users: Vec<String>,
    /// The group in `control.group`, if there is one.
    pub control_gid: Option<u32>,
}

/// How a secret may come to others than the daemon.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Exposure {
    /// By its mode.
    #[error("has mode {mode:04o}, which lets others at it")]
    Mode {
        /// Its permission bits.
        mode: u32,
    },
    /// By its owner.
    #[error("belongs to user id {uid}, who is neither root nor the daemon's user")]
    Owner {
        /// The owner.
        uid: u32,
    },
    /// Any client of the control socket reads it as well.
    #[error(
        "may be read by the group {group}, which is control.group: who may ask for `resumed status` has this secret too"
    )]
    ControlGroup {
        /// The group.
        group: String,
    },
    /// By its group's members.
    #[error("may be read by the group {group}, which has more members than the daemon's user: {}", members.join(", "))]
    Members {
        /// The group.
        group: String,
        /// Those who should not be in it.
        members: Vec<String>,
    },
}

impl Exposure {
    /// What to do about it.
    #[must_use]
    pub(crate) fn remedy(&self) -> String {
        match self {
            Self::Mode { .. } => format!("give it {ACCEPTED_MODES}"),
            Self::Owner { .. } => "give it to root, or to the daemon's user".to_owned(),
            Self::ControlGroup { .. } => {
                "give control.group a group that reads no secret: resumed-control, the default, is made for it"
                    .to_owned()
            }
            Self::Members { group, .. } => {
                format!(
                    "take them out (`gpasswd --delete NAME {group}`); `resumed status` needs control.group alone, \
                     `adduser NAME resumed-control` by default"
                )
            }
        }
    }

    /// Whether a farm secret is refused for it, and so needs no warning.
    fn ends_a_farm_secret(&self) -> bool {
        matches!(self, Self::Mode { .. } | Self::Owner { .. })
    }
}

/// How a file with this `access`, whose group is `readers`, exposes its secret to others than `daemon`.
#[must_use]
pub(crate) fn exposures(access: Access, readers: &Readers, daemon: &DaemonIdentity) -> Vec<Exposure> {
    let mut found = Vec::new();
    if access.is_too_open() {
        found.push(Exposure::Mode { mode: access.mode });
    }
    if !daemon.uids.contains(&access.uid) {
        found.push(Exposure::Owner { uid: access.uid });
    }
    if !access.is_the_groups() {
        return found;
    }
    if daemon.control_gid == Some(access.gid) {
        found.push(Exposure::ControlGroup { group: readers.group.clone() });
    }
    let members: Vec<_> = readers.members.iter().filter(|member| !daemon.users.contains(member)).cloned().collect();
    if !members.is_empty() {
        found.push(Exposure::Members { group: readers.group.clone(), members });
    }
    found
}

/// A secret's file that others than the daemon may get at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {}: {exposure}; {}", path.display(), exposure.remedy())]
pub(crate) struct Warning {
    /// The setting that names the file, `section.key`, or what of the configuration file makes it one.
    pub key: &'static str,
    /// The file.
    pub path: PathBuf,
    /// How they may.
    pub exposure: Exposure,
}

/// What exposes the secrets in `farm_secrets` and in `others`, the files of the broker with the setting that names each.
/// `control_group` is `control.group`. A file that cannot be looked at has no warning: reading it will say why.
///
/// The best that can be done without asking every directory of users: the members that the system names for the group,
/// and the users of `/etc/passwd` whose first group it is. A user of LDAP whose first group it is stays unseen, and so
/// does who is let in by an ACL.
#[must_use]
pub(crate) fn warnings(
    others: &[(&'static str, &Path)],
    farm_secrets: &[PathBuf],
    control_group: Option<&str>,
) -> Vec<Warning> {
    let control_gid = control_group.and_then(gid_of);
    let farm_secrets = farm_secrets.iter().map(|path| (FARM_SECRETS, path.as_path()));
    let files = farm_secrets.chain(others.iter().copied());
    files.flat_map(|(key, path)| warnings_of(key, path, control_gid)).collect()
}

const FARM_SECRETS: &str = "secret.files";

fn warnings_of(key: &'static str, path: &Path, control_gid: Option<u32>) -> Vec<Warning> {
    let Ok(metadata) = fs::metadata(path) else { return Vec::new() };
    let access = Access::of(path, &metadata);
    let readers = readers(access.gid);
    exposures(access, &readers, &daemon(&readers, control_gid))
        .into_iter()
        .filter(|exposure| key != FARM_SECRETS || !exposure.ends_a_farm_secret())
        .map(|exposure| Warning { key, path: path.into(), exposure })
        .collect()
}

fn gid_of(group: &str) -> Option<u32> {
    Group::from_name(group).ok().flatten().map(|group| group.gid.as_raw())
}

/// The group `gid` and who is in it, as far as the system says.
fn readers(gid: u32) -> Readers {
    let group = Group::from_gid(Gid::from_raw(gid)).ok().flatten();
    let (group, mut members) = group.map_or_else(|| (gid.to_string(), Vec::new()), |group| (group.name, group.mem));
    members.extend(with_first_group(&fs::read_to_string("/etc/passwd").unwrap_or_default(), gid));
    members.sort();
    members.dedup();
    Readers { group, members }
}

/// The users in `passwd`, which is as passwd(5) says, whose first group is `gid`.
fn with_first_group(passwd: &str, gid: u32) -> impl Iterator<Item = String> {
    passwd.lines().filter_map(move |line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        (fields.nth(2)?.parse() == Ok(gid)).then(|| name.to_owned())
    })
}

/// The daemon as this process: itself, or what root looks at it for. Root cannot know which user the daemon runs as, and
/// takes the user for it who has the name of the file's group, as `resumed` has.
fn daemon(readers: &Readers, control_gid: Option<u32>) -> DaemonIdentity {
    let own = geteuid();
    let mut users: Vec<User> = User::from_uid(own).ok().flatten().into_iter().collect();
    if own.is_root() {
        users.extend(User::from_name(&readers.group).ok().flatten());
    }
    let uids = users.iter().map(|user| user.uid.as_raw()).chain([0, own.as_raw()]).collect();
    let users = users.into_iter().map(|user| user.name).chain(["root".to_owned()]).collect();
    DaemonIdentity { uids, users, control_gid }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    const RESUMED: u32 = 990;
    const CONTROL: u32 = 991;

    fn packaged() -> Access {
        Access { mode: 0o640, uid: 0, gid: RESUMED, handed_over: false }
    }

    fn daemon() -> DaemonIdentity {
        DaemonIdentity {
            uids: vec![RESUMED, 0],
            users: vec!["resumed".to_owned(), "root".to_owned()],
            control_gid: Some(CONTROL),
        }
    }

    fn group(members: &[&str]) -> Readers {
        Readers { group: "resumed".to_owned(), members: members.iter().map(|&name| name.to_owned()).collect() }
    }

    #[test]
    fn what_is_tighter_than_0640_is_fine_and_what_is_looser_is_not() {
        for (mode, too_open) in [
            (0o640, false),
            (0o600, false),
            (0o440, false),
            (0o400, false),
            (0o644, true),
            (0o604, true),
            (0o660, true),
            (0o700, true),
            (0o4640, true),
        ] {
            let access = Access { mode, ..packaged() };
            assert_eq!(access.is_too_open(), too_open, "{mode:04o}");
            let expected = if too_open { vec![Exposure::Mode { mode }] } else { vec![] };
            assert_eq!(exposures(access, &group(&["resumed"]), &daemon()), expected, "{mode:04o}");
        }
    }

    #[test]
    fn the_mode_of_what_was_handed_over_matters_as_far_as_others_go() {
        for (mode, too_open) in
            [(0o400, false), (0o440, false), (0o660, false), (0o770, false), (0o444, true), (0o441, true)]
        {
            let access = Access { mode, handed_over: true, ..packaged() };
            assert_eq!(access.is_too_open(), too_open, "{mode:04o}");
        }
        // The group's bits are an ACL's mask, and the folder lets no group in.
        let access = Access { mode: 0o440, gid: CONTROL, handed_over: true, ..packaged() };
        assert_eq!(exposures(access, &group(&["alice"]), &daemon()), []);
    }

    #[test]
    fn a_group_that_reads_a_secret_is_neither_control_group_nor_has_other_members() {
        assert_eq!(exposures(packaged(), &group(&["resumed"]), &daemon()), []);
        assert_eq!(exposures(packaged(), &group(&["resumed", "root"]), &daemon()), []);
        let members = |names: &[&str]| Exposure::Members { group: "resumed".into(), members: group(names).members };
        let control = Exposure::ControlGroup { group: "resumed".into() };
        let shared = DaemonIdentity { control_gid: Some(RESUMED), ..daemon() };
        for (mode, who, to, expected) in [
            (0o640, &["resumed", "alice", "bob"][..], daemon(), vec![members(&["alice", "bob"])]),
            (0o440, &["alice"], daemon(), vec![members(&["alice"])]),
            (0o640, &["resumed"], shared.clone(), vec![control.clone()]),
            (0o640, &["alice"], shared.clone(), vec![control, members(&["alice"])]),
            // What the group cannot read concerns none of its members.
            (0o600, &["alice"], shared, vec![]),
            (0o640, &["resumed"], DaemonIdentity { control_gid: None, ..daemon() }, vec![]),
        ] {
            assert_eq!(exposures(Access { mode, ..packaged() }, &group(who), &to), expected, "{mode:04o} {who:?}");
        }
    }

    #[test]
    fn a_secret_of_another_user_can_be_changed_by_that_user() {
        let access = Access { mode: 0o600, uid: 1000, ..packaged() };
        assert_eq!(exposures(access, &group(&[]), &daemon()), [Exposure::Owner { uid: 1000 }]);
        for uid in [0, RESUMED] {
            assert_eq!(exposures(Access { uid, ..access }, &group(&[]), &daemon()), []);
        }
    }

    #[test]
    fn users_are_found_by_their_first_group() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nresumed:x:104:990::/nonexistent:/usr/sbin/nologin\n\
                      alice:x:1000:990:Alice:/home/alice:/bin/bash\n\n:x:1:990::/:\nshort:x:1\nodd:x:1:99o::/:\n";
        assert_eq!(with_first_group(passwd, 990).collect::<Vec<_>>(), ["resumed", "alice"]);
        assert_eq!(with_first_group(passwd, 1).count(), 0);
    }

    #[test]
    fn every_file_is_looked_at_and_a_refused_farm_secret_is_not_warned_of_besides() {
        let directory = crate::temporary::Folder::new();
        let file = |name: &str, mode| {
            let path = directory.path().join(name);
            fs::write(&path, "x").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let (secret, password, key) = (file("secret", 0o644), file("password", 0o644), file("key", 0o666));
        let gid = Gid::from_raw(fs::metadata(&secret).unwrap().gid());
        let config = file("resumed.toml", 0o644);
        let others = [
            ("broker.password_file", password.as_path()),
            ("broker.key_file", &key),
            ("broker.uris, with a password, in the file", &config),
        ];
        let control_group = Group::from_gid(gid).unwrap().map(|group| group.name);
        let gone = directory.path().join("gone");
        let found = warnings(&others, &[secret.clone(), gone], control_group.as_deref());
        let modes: Vec<_> = found
            .iter()
            .filter(|warning| matches!(warning.exposure, Exposure::Mode { .. }))
            .map(|warning| (warning.key, warning.path.as_path()))
            .collect();
        assert_eq!(modes, others);
        if control_group.is_some() {
            let of_control = |warning: &&Warning| matches!(warning.exposure, Exposure::ControlGroup { .. });
            let of_control: Vec<_> = found.iter().filter(of_control).map(|warning| &warning.path).collect();
            assert_eq!(of_control, [&secret, &password, &key, &config]);
        }
        assert!(found.iter().all(|warning| warning.to_string().starts_with(warning.key)), "{found:?}");
    }
}
