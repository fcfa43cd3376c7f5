//! Kernel configuration fragments: the requested settings, and which of them a finished configuration lacks.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result, bail, ensure};

/// The settings of a configuration fragment, in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fragment {
    settings: Vec<Setting>,
}

/// An option and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    /// The name, with its prefix `CONFIG_`.
    option: String,
    /// The text after the `=`; `n` for an option that is not set.
    value: String,
}

impl Fragment {
    /// Parses a fragment: settings, comments and empty lines.
    ///
    /// # Errors
    /// A line is none of these, or an option is set twice.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut settings = Vec::new();
        let mut seen = HashSet::new();
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            let setting = setting(line).with_context(|| format!("line {number}"))?;
            let Some(setting) = setting else { continue };
            let is_new = seen.insert(setting.option.clone());
            ensure!(is_new, "line {number} sets {} again", setting.option);
            settings.push(setting);
        }
        Ok(Self { settings })
    }

    /// Returns the settings alone, one per line, as the kernel's tools read them.
    pub(super) fn settings(&self) -> String {
        self.settings.iter().map(|setting| format!("{}\n", setting.line())).collect()
    }

    /// Returns the settings that `config`, a complete configuration, does not have, each with the value that
    /// it has instead.
    pub(super) fn overruled(&self, config: &str) -> Vec<String> {
        let found: HashMap<String, String> = config
            .lines()
            .filter_map(|line| setting(line).ok()?)
            .map(|setting| (setting.option, setting.value))
            .collect();
        let overruled = self.settings.iter().filter_map(|setting| {
            match found.get(&setting.option).map_or("n", String::as_str) {
                value if value == setting.value => None,
                value => Some(format!("{} (is {value})", setting.line())),
            }
        });
        overruled.collect()
    }
}

impl Setting {
    fn line(&self) -> String {
        match self.value.as_str() {
            "n" => format!("# {} is not set", self.option),
            value => format!("{}={value}", self.option),
        }
    }
}

/// Parses the setting on a line; `None` for a comment or an empty line.
fn setting(line: &str) -> Result<Option<Setting>> {
    let of =
        |option: &str, value: &str| Ok(Some(Setting { option: option.to_owned(), value: value.to_owned() }));
    let unset = line.strip_prefix("# ").and_then(|line| line.strip_suffix(" is not set"));
    if let Some(option) = unset.filter(|option| is_option(option)) {
        return of(option, "n");
    }
    if line.trim().is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    match line.split_once('=') {
        Some((option, value)) if is_option(option) && !value.is_empty() => of(option, value),
        _ => bail!("{line:?} is neither CONFIG_OPTION=VALUE nor `# CONFIG_OPTION is not set` nor a comment"),
    }
}

fn is_option(word: &str) -> bool {
    let name = word.strip_prefix("CONFIG_").unwrap_or_default();
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Why A.\nCONFIG_A=y\n\n# CONFIG_B is not set\nCONFIG_C=\"-x=y\"\nCONFIG_64BIT=y\n";

    #[test]
    fn settings_are_the_fragment_without_its_comments() {
        let settings = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"-x=y\"\nCONFIG_64BIT=y\n";
        assert_eq!(Fragment::parse(TEXT).unwrap().settings(), settings);
    }

    #[test]
    fn configuration_that_has_every_setting_overrules_none() {
        // An option that is off may also be missing: one whose dependencies are not met is not listed.
        let config =
            "#\n# Automatically generated\n#\nCONFIG_64BIT=y\nCONFIG_A=y\nCONFIG_C=\"-x=y\"\nCONFIG_D=m\n";
        assert_eq!(Fragment::parse(TEXT).unwrap().overruled(config), [""; 0]);
    }

    #[test]
    fn settings_that_are_missing_or_differ_are_told_with_what_there_is() {
        let config = "CONFIG_A=m\nCONFIG_B=y\nCONFIG_C=\"-x=y\"\n";
        let expected = ["CONFIG_A=y (is m)", "# CONFIG_B is not set (is y)", "CONFIG_64BIT=y (is n)"];
        assert_eq!(Fragment::parse(TEXT).unwrap().overruled(config), expected);
    }

    #[test]
    fn line_that_is_no_setting_is_refused_with_its_number() {
        for line in ["CONFIG_A", "CONFIG_A=", "A=y", "CONFIG_=y", "CONFIG_A-B=y", " CONFIG_A=y"] {
            let error = Fragment::parse(&format!("CONFIG_Z=y\n{line}\n")).unwrap_err();
            assert!(error.to_string().contains("line 2"), "{line:?}: {error:#}");
        }
    }

    #[test]
    fn option_that_is_set_twice_is_refused() {
        let error = Fragment::parse("CONFIG_A=y\n# CONFIG_A is not set\n").unwrap_err();
        assert_eq!(error.to_string(), "line 2 sets CONFIG_A again");
    }
}
