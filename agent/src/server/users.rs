//! Users and groups from `/etc/passwd` and `/etc/group` (`passwd(5)`, `group(5)`). They are read here because
//! a static program has no name services.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

/// The user and groups of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary groups.
    pub(super) groups: Vec<u32>,
    pub(super) name: OsString,
    pub(super) home: OsString,
    pub(super) shell: OsString,
}

/// Returns the identity of `USER` or `USER:GROUP`, names or numbers; `None` if there is no such user or
/// group. A number without a line in the file is a user of its own, in the group of the same number.
pub(super) fn find(wanted: &OsStr) -> Option<Identity> {
    let read = |path: &str| fs::read(path).unwrap_or_default();
    identity(wanted, &read("/etc/passwd"), &read("/etc/group"))
}

/// Returns the identity of a user's number, for the variables of a command that runs as the agent's user.
pub(super) fn of_uid(uid: u32) -> Identity {
    let passwd = fs::read("/etc/passwd").unwrap_or_default();
    lines(&passwd)
        .find_map(|fields| user(&fields).filter(|user| user.uid == uid))
        .unwrap_or_else(|| unlisted(uid))
}

fn identity(wanted: &OsStr, passwd: &[u8], group: &[u8]) -> Option<Identity> {
    let mut parts = wanted.as_bytes().splitn(2, |byte| *byte == b':');
    let (user_word, group_word) = (parts.next()?, parts.next());
    let by_name =
        || lines(passwd).find_map(|fields| user(&fields).filter(|user| user.name.as_bytes() == user_word));
    let by_number = |uid| lines(passwd).find_map(|fields| user(&fields).filter(|user| user.uid == uid));
    let mut found = match (by_name(), number(user_word)) {
        (Some(user), _) => user,
        (None, Some(uid)) => by_number(uid).unwrap_or_else(|| unlisted(uid)),
        (None, None) => return None,
    };
    match group_word {
        Some(word) => {
            let by_name = lines(group).find(|fields| fields.first() == Some(&word));
            found.gid = by_name.and_then(|fields| number(fields.get(2)?)).or_else(|| number(word))?;
        }
        None => found.groups = groups_of(found.name.as_bytes(), group),
    }
    Some(found)
}

fn groups_of(name: &[u8], group: &[u8]) -> Vec<u32> {
    let has_member = |fields: &&[u8]| fields.split(|byte| *byte == b',').any(|member| member == name);
    let of_member = |fields: Vec<&[u8]>| {
        fields.get(3).filter(|members| has_member(members))?;
        number(fields.get(2)?)
    };
    lines(group).filter_map(of_member).collect()
}

fn user(fields: &[&[u8]]) -> Option<Identity> {
    let [name, _, uid, gid, _, home, shell, ..] = fields else { return None };
    let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    Some(Identity {
        uid: number(uid)?,
        gid: number(gid)?,
        groups: Vec::new(),
        name: text(name),
        home: text(home),
        shell: text(shell),
    })
}

fn unlisted(uid: u32) -> Identity {
    let is_root = uid == 0;
    let name = if is_root { "root".into() } else { uid.to_string().into() };
    let home = if is_root && Path::new("/root").is_dir() { "/root" } else { "/" };
    Identity { uid, gid: uid, groups: Vec::new(), name, home: home.into(), shell: "/bin/sh".into() }
}

fn number(text: &[u8]) -> Option<u32> {
    let text =
        std::str::from_utf8(text).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    // The last number means "none" to the kernel.
    text.parse().ok().filter(|number| *number != u32::MAX)
}

fn lines(file: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    file.split(|byte| *byte == b'\n').map(|line| line.split(|byte| *byte == b':').collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/bash\nweb:x:33:33::/var/www:/usr/sbin/nologin\nbroken:x\n\
                            12:x:7:8::/twelve:\n";
    const GROUP: &[u8] =
        b"root:x:0:\nvideo:x:44:web,other\nkvm:x:104:other,web\nnear:x:105:webber\nweb:x:33:\n";

    fn found(wanted: &str) -> Option<(u32, u32, Vec<u32>)> {
        identity(wanted.as_ref(), PASSWD, GROUP).map(|user| (user.uid, user.gid, user.groups))
    }

    #[test]
    fn names_have_their_groups() {
        assert_eq!(found("web"), Some((33, 33, vec![44, 104])));
        assert_eq!(found("33"), Some((33, 33, vec![44, 104])));
        assert_eq!(found("root"), Some((0, 0, vec![])));
        let web = identity("web".as_ref(), PASSWD, GROUP).unwrap();
        assert_eq!((web.home, web.shell), ("/var/www".into(), "/usr/sbin/nologin".into()));
    }

    #[test]
    fn group_that_is_named_is_the_only_one() {
        assert_eq!(found("web:video"), Some((33, 44, vec![])));
        assert_eq!(found("web:1234"), Some((33, 1234, vec![])));
        assert_eq!(found("web:none"), None);
    }

    #[test]
    fn number_without_a_line_is_a_user_of_its_own_and_a_name_is_none() {
        assert_eq!(found("1000"), Some((1000, 1000, vec![])));
        // A name that looks like a number comes first.
        assert_eq!(found("12"), Some((7, 8, vec![])));
        for wanted in ["nobody", "", "-1", "4294967295", "4294967296", "broken", "web:"] {
            assert_eq!(found(wanted), None, "{wanted}");
        }
    }
}
