//! Tests that each error of the library contains its cause, once.

mod common;

use std::error::Error;
use std::path::{Path, PathBuf};

use coracle::config::{CpuModel, DiskConfig, RootConfig, SerialConfig, VmConfig};
use coracle::{BuildError, VmBuilder};

/// A program that prints an error and its causes shows each of them once.
fn says(error: &dyn Error, reason: &str) {
    let text = error.to_string();
    assert!(text.contains(reason), "{text}");
    assert_eq!((text.lines().count(), text.matches(reason).count()), (1, 1), "{text}");
    assert!(error.source().is_none(), "{text}: {:?} again", error.source());
    assert_eq!(coracle::error::whole(error), text);
}

fn build(change: impl FnOnce(&mut VmConfig)) -> BuildError {
    let mut config = VmConfig::new(common::payload("hello-exit"));
    change(&mut config);
    VmBuilder::new(config).build().err().unwrap()
}

#[test]
fn errors_of_a_build_have_their_reasons() {
    if !common::kvm_or_skip() {
        return;
    }
    let missing = || PathBuf::from("/no/such/file");
    let damaged = || common::file("damaged.tar", &[b'x'; 1024]);
    let none = "No such file or directory";
    says(&build(|config| config.kernel = Some(missing())), none);
    says(&build(|config| config.kernel = Some(common::file("cut.gz", b"\x1f\x8b\x08\0cut"))), "gzip");
    says(&build(|config| config.initrds = vec![missing()]), none);
    says(&build(|config| config.disks = vec![DiskConfig::new(missing())]), none);
    says(&build(|config| config.root = Some(RootConfig::new(missing()))), none);
    says(&build(|config| config.root = Some(RootConfig::new(damaged()))), "damaged.tar");
    says(&build(|config| config.serial = SerialConfig::File(missing().into())), none);
    says(&build(|config| config.serial = SerialConfig::Socket(missing())), none);
    says(&build(|config| config.cpu = CpuModel::Template(missing())), none);
    let image = std::fs::File::create(common::scratch().join("image")).unwrap();
    let image = coracle::rootfs::write_image(&RootConfig::new(missing()), &image);
    says(&image.unwrap_err(), none);
}

/// In the source of every public error, the cause is neither left to `source`, where a program that prints
/// the error does not look, nor repeated there; and each error may get more variants.
#[test]
fn no_error_hides_its_reason_or_repeats_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut wrong = Vec::new();
    let mut errors = 0;
    for folder in ["src", "devices/src", "arch/src", "agent/src/protocol"] {
        visit(&root.join(folder), &mut |path, text| {
            let product = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let of_library = !name.starts_with("src/commands") && !name.starts_with("src/cli");
            if !of_library || name.ends_with("tests.rs") || name == INNER {
                return;
            }
            for rest in after(product, "#[error(") {
                errors += 1;
                let variant = rest.split("\n}\n").next().unwrap_or_default();
                let variant = variant.split("#[error(").next().unwrap_or_default();
                let says = rest.starts_with("transparent)") || !variant.contains("#[from]");
                if !says || variant.contains("#[source]") || variant.contains(" source: ") {
                    wrong.push(format!("{name}: {}", variant.lines().next().unwrap_or_default()));
                } else if variant.contains("r#source: ") && !variant.contains("{source}") {
                    wrong
                        .push(format!("{name}: no reason in {}", variant.lines().next().unwrap_or_default()));
                }
            }
            for rest in after(product, "Error)]\npub enum ") {
                wrong
                    .push(format!("{name}: not non_exhaustive: {}", rest.lines().next().unwrap_or_default()));
            }
        });
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(errors > 200, "{errors}");
}

/// This error is not part of a public one: code that opens files takes it apart.
const INNER: &str = "arch/src/regular_file.rs";

/// Returns the text after each `mark`.
fn after<'a>(text: &'a str, mark: &'a str) -> impl Iterator<Item = &'a str> {
    text.match_indices(mark).map(move |(at, _)| &text[at + mark.len()..])
}

fn visit(folder: &Path, look: &mut dyn FnMut(&Path, &str)) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            visit(&path, look);
        } else if path.extension().is_some_and(|end| end == "rs") {
            look(&path, &std::fs::read_to_string(&path).unwrap());
        }
    }
}
