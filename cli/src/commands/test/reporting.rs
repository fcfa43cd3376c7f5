//! Writes the requested reports, however the run ended.

use std::fs;
use std::path::{Path, PathBuf};

use super::case::{Case, Done};
use super::report;
use super::verdict::{Verdict, worst};
use crate::arguments::TestArgs;
use crate::commands::report_file::{self, READER_LIMIT};
use crate::commands::say;
use crate::commands::settings::Failure;
use coracle::exit_code;
use coracle::host::on_emulated_host;

/// Writes the reports and returns the exit code of the run. If one cannot be written, the other is still
/// written.
///
/// # Errors
/// A report cannot be written.
pub(super) fn write(args: &TestArgs, done: &[Done]) -> Result<u8, Failure> {
    let write = |option: &str, path: &Path, content: Vec<u8>| {
        report_file::write(path, &content, READER_LIMIT).map_err(|error| Failure {
            code: exit_code::BAD_USAGE,
            reason: format!("{option} {}: it cannot be written: {error}", path.display()),
        })
    };
    let junit = args.junit.as_deref().map_or(Ok(()), |path| {
        let xml = report::junit(&suite_name(args, done), done).map_err(|error| Failure::of(&error))?;
        write("--junit", path, xml)
    });
    let json = args
        .json
        .as_deref()
        .map_or(Ok(()), |path| write("--json", path, report::json(done, on_emulated_host()).into_bytes()));
    junit.and(json)?;
    Ok(worst(&done.iter().map(|case| &case.verdict).collect::<Vec<_>>()))
}

/// Completes the `result` of a run. If it has left no report, because an emulated host ended first, the
/// reports are written with the reason. A run without its requested reports has not passed.
///
/// # Errors
/// The error of the run, or a report cannot be written.
pub(super) fn with_missing(
    args: &TestArgs,
    cases: &[Case],
    result: Result<u8, Failure>,
) -> Result<u8, Failure> {
    let is_missing =
        |path: &PathBuf| fs::metadata(path).map_or(true, |file| file.is_file() && file.len() == 0);
    // A report that exists belongs to this run, and must not be overwritten because the other could not be
    // written.
    let mut reports = [&args.junit, &args.json].into_iter().flatten().peekable();
    if reports.peek().is_none() || !reports.all(is_missing) {
        return result;
    }
    let ended = "the emulated host ended before the results were written";
    let (code, reason) = match &result {
        Ok(0) => {
            say(ended);
            (exit_code::HOST_FAILED, ended.to_owned())
        }
        Ok(code) => (*code, ended.to_owned()),
        Err(failure) => (failure.code, failure.reason.clone()),
    };
    let lost = |case: &Case| case.not_run(Verdict::Broken { code, reason: reason.clone() });
    let written = write(args, &cases.iter().map(lost).collect::<Vec<_>>());
    match (result, written) {
        (Ok(_), written) => written.map(|_| code),
        (Err(failure), Ok(_)) => Err(failure),
        (Err(failure), Err(unwritten)) => {
            say(&unwritten.reason);
            Err(failure)
        }
    }
}

/// Returns the name of the suite's file, or of the only case.
fn suite_name(args: &TestArgs, done: &[Done]) -> String {
    let of_file =
        args.suite.as_ref().and_then(|path| path.file_stem()).map(|name| name.to_string_lossy().into_owned());
    of_file.or_else(|| Some(done.first()?.name.clone())).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use vmm_sys_util::tempdir::TempDir;

    use super::*;
    use crate::arguments::{Cli, Command};

    /// Runs with both reports in a directory; returns the code or the reason, and their contents.
    fn reported(result: Result<u8, Failure>, junit: &str, json: &str) -> (Result<u8, String>, [String; 2]) {
        let folder = TempDir::new().unwrap();
        let path = |name: &str| folder.as_path().join(name);
        let (xml, text) = (path(junit), path(json));
        let words = ["coracle".as_ref(), "test".as_ref(), "--junit".as_ref(), xml.as_os_str()];
        let words = words.into_iter().chain(["--json".as_ref(), text.as_os_str()]);
        let Command::Test(args) = Cli::try_parse_from(words).unwrap().command else { panic!() };
        let result = with_missing(&args, &[Case::sample("case")], result).map_err(|failure| failure.reason);
        (result, [xml, text].map(|path| fs::read_to_string(path).unwrap_or_default()))
    }

    #[test]
    fn run_without_its_reports_has_not_passed() {
        for (result, code) in [(0, 117), (120, 120)] {
            let (result, [xml, json]) = reported(Ok(result), "a", "b");
            assert_eq!(result, Ok(code));
            assert!(xml.contains("errors=\"1\"") && xml.contains("before the results were written"), "{xml}");
            assert!(json.contains(&format!("\"code\": {code}")) && json.contains("\"broken\""), "{json}");
        }
    }

    #[test]
    fn report_that_cannot_be_written_does_not_keep_the_other_from_it() {
        for (junit, json, option) in [("no/a", "b", "--junit"), ("a", "no/b", "--json")] {
            let (result, [xml, text]) = reported(Ok(120), junit, json);
            let reason = result.unwrap_err();
            assert!(reason.starts_with(option) && reason.contains("cannot be written"), "{reason}");
            let there = if option == "--json" { xml } else { text };
            assert!(there.contains("before the results were written"), "{there}");
            let failure = || Failure { code: 115, reason: "no KVM".into() };
            let (result, [xml, text]) = reported(Err(failure()), junit, json);
            assert_eq!(result, Err("no KVM".into()), "the reason why nothing ran takes precedence");
            let there = if option == "--json" { xml } else { text };
            assert!(there.contains("no KVM"), "{there}");
        }
    }
}
