//! The names of users, for people who read who asked what.

use std::fs::File;
use std::io::Read;

use crate::farm::is_user;

/// No longer file is looked at: 20,000 users or so.
const MOST_BYTES: u64 = 2 << 20;

/// The name of the user `uid` in `/etc/passwd`, or else the number. Directories of users behind NSS are not asked: one that
/// does not answer would hold the daemon up.
#[must_use]
pub(crate) fn user_name(uid: u32) -> String {
    let mut text = String::new();
    let read = File::open("/etc/passwd").and_then(|file| file.take(MOST_BYTES).read_to_string(&mut text));
    read.ok().and_then(|_| name_in(&text, uid)).unwrap_or_else(|| uid.to_string())
}

fn name_in(passwd: &str, uid: u32) -> Option<String> {
    let mut users = passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        Some((fields.next()?, fields.nth(1)?))
    });
    let (name, _) = users.find(|(_, number)| number.parse() == Ok(uid))?;
    (!name.is_empty() && is_user(name)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_have_their_first_name_in_the_file_and_others_a_number() {
        let passwd =
            "root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/root:/bin/sh\n\nbad line\n+::::::\n\u{7}x:x:7:7::/:/\n";
        assert_eq!(name_in(passwd, 0), Some("root".into()));
        assert_eq!(name_in(passwd, 7), None, "no name for a terminal");
        assert_eq!(name_in(passwd, 1000), None);
        assert_eq!(user_name(4_000_000_001), "4000000001");
    }
}
