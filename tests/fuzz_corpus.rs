//! Replays the corpora of the fuzz targets, so that earlier findings stay fixed, without a fuzzer.

#[allow(unreachable_pub)]
#[path = "../fuzz/src/lib.rs"]
mod fuzz;

use std::fs;
use std::path::{Path, PathBuf};

/// The maximum size of a corpus file: corpora are also for people to read, and a finding that needs more can
/// be minimized.
const LARGEST: usize = 64 << 10;

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = files.map(|file| file.unwrap().path());
    paths.map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
}

#[test]
fn every_input_of_every_corpus_is_handled() {
    for (target, handle) in fuzz::TARGETS {
        let inputs = corpus(target);
        assert!(inputs.len() >= 5, "the corpus of {target} has {} inputs", inputs.len());
        for (path, data) in inputs {
            assert!(data.len() <= LARGEST, "{} is too large", path.display());
            // The name is shown if the target panics.
            println!("{}", path.display());
            handle(&data);
        }
    }
}

#[test]
fn corpora_reach_beyond_the_first_check() {
    use coracle::KernelImage;
    use coracle::config::RawConfig;
    use coracle_agent::protocol::emulated_host::{FromAgent, ToAgent};

    let accepted = corpus("kernel_image").iter().filter(|(path, _)| KernelImage::open(path).is_ok()).count();
    assert!(accepted >= 3, "{accepted} kernel images are accepted");
    let accepted =
        corpus("config_file").iter().filter(|(_, text)| RawConfig::from_json(text).is_ok()).count();
    assert!(accepted >= 3, "{accepted} config files are accepted");
    let is_state = |data: &[u8]| coracle::fuzzing::read_state(data, 1, 16).is_ok();
    let accepted = corpus("snapshot_state").iter().filter(|(_, data)| is_state(data)).count();
    assert!(accepted >= 2, "{accepted} states of snapshots are accepted");
    let message = |data: &[u8]| data.get(5..).map(<[u8]>::to_vec).unwrap_or_default();
    let corpus = corpus("control_protocol");
    assert!(corpus.iter().any(|(_, data)| ToAgent::parse(&message(data)).is_ok()));
    assert!(corpus.iter().any(|(_, data)| FromAgent::parse(&message(data)).is_ok()));
}

#[test]
fn every_target_has_a_program_for_the_fuzzer() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    for (target, _) in fuzz::TARGETS {
        assert!(manifest.contains(&format!("name = \"{target}\"")), "{target}");
        let program = fs::read_to_string(folder.join(format!("fuzz_targets/{target}.rs"))).unwrap();
        assert!(program.contains(&format!("coracle_fuzz::{target}(data)")), "{target}");
    }
}
