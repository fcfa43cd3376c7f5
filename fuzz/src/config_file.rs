//! The text of a config file, as `coracle run --config` reads it.

use std::path::Path;

use coracle::config::RawConfig;

/// `data` is the file. Whatever is wrong with it is said in one line that names a line of the file.
pub fn config_file(data: &[u8]) {
    match RawConfig::from_json(data) {
        Ok(raw) => {
            let absolute = raw.clone().relative_to(Path::new("/folder"));
            assert_eq!(
                absolute.clone().relative_to(Path::new("/other")),
                absolute,
                "a path was left relative"
            );
            assert_eq!(raw.clone().over(RawConfig::default()), raw);
            assert_eq!(RawConfig::default().over(raw.clone()), raw);
        }
        Err(fault) => {
            // serde_json counts the line after the last newline, too.
            let lines = data.iter().filter(|&&byte| byte == b'\n').count() + 1;
            assert!((1..=lines).contains(&fault.line), "line {} of {lines}: {fault}", fault.line);
            assert!(!fault.to_string().contains(char::is_control), "{fault}");
        }
    }
}
