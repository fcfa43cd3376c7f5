//! The release in a kernel's version text, which has the same form in both formats: `6.1.0-56-amd64 (builder)
//! #1 SMP ...`.

/// Bytes of the text that are read: Linux's own limit for a release (`__NEW_UTS_LEN`) and the character after
/// it.
pub(super) const TEXT_LEN: usize = 65;

/// Returns the release at the start of `text`. Callers make a path of it, so it must start with a digit and
/// have no `/`.
pub(super) fn parse(text: &[u8]) -> Option<String> {
    let end = text.iter().position(|byte| matches!(byte, b' ' | b'\n' | 0))?;
    let release = text.get(..end)?;
    let is_plain = release.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'/');
    if !is_plain || !release.first()?.is_ascii_digit() {
        return None;
    }
    String::from_utf8(release.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn release_ends_at_a_space_or_the_end_of_the_text() {
        assert_eq!(parse(b"6.1.0-56-cloud-amd64 (x) #1").as_deref(), Some("6.1.0-56-cloud-amd64"));
        assert_eq!(parse(b"6.19-rc1+\0").as_deref(), Some("6.19-rc1+"));
    }

    #[test]
    fn text_that_is_no_release_is_none() {
        for text in
            [&b""[..], b" ", b"%s (", b"../../etc ", b"6/../../x ", b"6.1", b"6.\xff ", &[b'6'; TEXT_LEN]]
        {
            assert_eq!(parse(text), None, "{}", text.escape_ascii());
        }
    }
}
