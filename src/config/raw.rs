//! The settings of a run as the user gave them, with paths of a config file resolved against its directory.
//! Defaults and the content of files are not handled here.

use std::path::Path;

use super::RawConfig;

impl RawConfig {
    /// Resolves every relative path against `folder`.
    #[must_use]
    pub fn relative_to(mut self, folder: &Path) -> RawConfig {
        self.each_path(&mut |path| *path = folder.join(&path));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> RawConfig {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn settings_above_win_field_by_field_and_lists_as_a_whole() {
        let flags = raw(r#"{"cpus": 2, "append": ["a"]}"#);
        let file = raw(r#"{"cpus": 4, "memory": "1G", "append": ["b", "c"], "initrds": ["i"]}"#);
        let expected = raw(r#"{"cpus": 2, "memory": "1G", "append": ["a"], "initrds": ["i"]}"#);
        assert_eq!(flags.over(file), expected);
    }

    #[test]
    fn null_is_not_told() {
        assert_eq!(raw(r#"{"kernel": null, "cpus": null, "timeout": null}"#), RawConfig::default());
    }

    #[test]
    fn absolute_paths_and_other_words_stay() {
        let json = r#"{"kernel": "/boot/vmlinux", "serial": "null", "append": ["root=vda"], "cmdline": "x"}"#;
        assert_eq!(raw(json).relative_to(Path::new("/vm")), raw(json));
    }

    #[test]
    fn folder_of_a_bare_file_name_changes_nothing() {
        let relative = raw(r#"{"kernel": "vmlinux"}"#);
        assert_eq!(relative.clone().relative_to(Path::new("")), relative);
    }
}
