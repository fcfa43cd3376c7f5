//! "Did you mean": finds the option or command nearest to a mistyped one. `main` calls this before it prints
//! an error of clap's; clap's own feature for it needs twenty times as much code.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, Error};
use coracle::config::nearest;

use super::whole;

/// Adds the probable intention to an error about an unknown option, argument or command.
pub(crate) fn add_to(error: &mut Error, arguments: &[String]) {
    let root = whole();
    let command = command_of(&root, arguments);
    let kind = error.kind();
    if kind == ErrorKind::MissingRequiredArgument && lacks_command(error, command) {
        let advice = "--env, --user, --workdir, --ip and --snapshot-on-ready are for a command, which comes \
                      after `--`, as in -- id -u";
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![advice.into()]));
    }
    let unknown = match kind {
        ErrorKind::UnknownArgument => ContextKind::InvalidArg,
        ErrorKind::InvalidSubcommand => ContextKind::InvalidSubcommand,
        _ => return,
    };
    let Some(ContextValue::String(unknown)) = error.get(unknown).cloned() else { return };
    // clap suggests passing the argument as a value, which is not what the user meant.
    error.remove(ContextKind::Suggested);
    if kind == ErrorKind::InvalidSubcommand {
        let names = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
        if let Some(near) = meant(&unknown, names) {
            error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(vec![near]));
        } else if command.get_name() == "snapshot" {
            let advice = "a run writes them: coracle run --snapshot-on-signal FOLDER, or --snapshot-on-ready";
            error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![advice.into()]));
        }
    } else if command.get_name() == "restore" && fixed_by_snapshot(&root, &unknown) {
        let advice = format!("the snapshot has fixed {unknown}: leave it out");
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![advice.into()]));
    } else if let Some(near) = meant(&unknown, options(command)) {
        error.insert(ContextKind::SuggestedArg, ContextValue::String(near));
    } else if let Some(advice) = advice(&unknown, command) {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![advice.into()]));
    }
}

/// Returns whether this is an option of `run` that says what the guest's machine is.
fn fixed_by_snapshot(root: &Command, unknown: &str) -> bool {
    let named = |option: &clap::Arg| match unknown.strip_prefix("--") {
        Some(long) => option.get_long() == Some(long),
        None => unknown
            .strip_prefix('-')
            .is_some_and(|short| option.get_short().is_some_and(|letter| short.starts_with(letter))),
    };
    root.find_subcommand("run").is_some_and(|run| run.get_arguments().any(named))
}

/// Returns whether the missing argument is the command to which options such as `--user` belong.
fn lacks_command(error: &Error, command: &Command) -> bool {
    let has_options = command.get_arguments().any(|argument| argument.get_id() == "user");
    has_options
        && match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::Strings(missing)) => missing.iter().any(|name| name.contains("COMMAND")),
            _ => false,
        }
}

/// Returns the name that was probably meant: the one that other programs' name stands for, the only one with
/// this beginning, or the nearest.
fn meant(unknown: &str, known: Vec<String>) -> Option<String> {
    let other = OTHER_NAMES.iter().find(|(name, _)| *name == unknown).map(|(_, ours)| (*ours).to_owned());
    let begins = || {
        let mut long = known.iter().filter(|name| name.starts_with(unknown));
        long.next().filter(|_| long.next().is_none() && unknown.len() >= MIN_BEGINNING).cloned()
    };
    other.filter(|ours| known.contains(ours)).or_else(begins).or_else(|| nearest(unknown, known))
}

/// Tells where an argument belongs that is not an option of `command`.
fn advice(unknown: &str, command: &Command) -> Option<&'static str> {
    let has = |name: &str| command.get_arguments().any(|argument| argument.get_id() == name);
    match unknown {
        "--kernel" if has("kernel") => Some("the kernel needs no option: coracle run FILE"),
        // An unknown option that is not similar to any other could mean anything.
        long if long.starts_with("--") => None,
        file if !file.starts_with('-') && has("kernel") && has("initrds") => {
            Some("an initrd is given with -i FILE; a command and its own options come after `--`")
        }
        _ if has("command") => Some("a command and its own options come after `--`"),
        _ => None,
    }
}

/// Names of options and commands in similar programs, with ours.
const OTHER_NAMES: &[(&str, &str)] = &[
    ("--drive", "--disk"),
    ("--hda", "--disk"),
    ("--ram", "--memory"),
    ("--smp", "--cpus"),
    ("--vcpus", "--cpus"),
    ("--netdev", "--net"),
    ("--network", "--net"),
    ("--nic", "--net"),
    ("--ramdisk", "--initrd"),
    ("--rootfs", "--root"),
    ("boot", "run"),
    ("exec", "run"),
    ("fork", "restore"),
    ("start", "run"),
];

/// The shortest beginning that counts as an abbreviation; a shorter one could mean many options.
const MIN_BEGINNING: usize = 3;

/// The message for arguments of which one is not UTF-8 where it has to be: clap does not name the argument.
pub(crate) fn not_utf8(error: &Error, arguments: &[OsString]) -> Option<String> {
    if error.kind() != ErrorKind::InvalidUtf8 {
        return None;
    }
    let wrong = arguments.iter().find(|argument| argument.to_str().is_none())?;
    Some(format!(
        "the argument {wrong:?} is not UTF-8, as all arguments except plain paths and commands must be: give the file \
         another name, or a link with one"
    ))
}

/// Returns the innermost subcommand that the arguments name.
fn command_of<'a>(root: &'a Command, arguments: &[String]) -> &'a Command {
    arguments
        .iter()
        .skip(1)
        .try_fold(root, |command, word| command.find_subcommand(word).ok_or(command))
        .unwrap_or_else(|command| command)
}

fn options(command: &Command) -> Vec<String> {
    command.get_arguments().filter_map(|argument| Some(format!("--{}", argument.get_long()?))).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::Cli;

    fn said(line: &str) -> String {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let mut error = Cli::try_parse_from(&arguments).unwrap_err();
        add_to(&mut error, &arguments);
        error.to_string()
    }

    #[test]
    fn option_or_command_that_is_near_is_named() {
        for (line, near) in [
            ("coracle run --timout 5s", "'--timeout'"),
            ("coracle run --timeuot=5s", "'--timeout'"),
            ("coracle run k --disks a", "'--disk'"),
            ("coracle test --junti x", "'--junit'"),
            ("coracle host-emulate --shar /x -- true", "'--share'"),
            ("coracle cpu dump --cup x", "'--cpu'"),
            ("coracle rnu", "'run'"),
            ("coracle host-emulat", "'host-emulate'"),
            ("coracle cpu dmup", "'dump'"),
            ("coracle run --mem 1G", "'--memory'"),
            ("coracle restore snap --fokr 2", "'--fork'"),
            ("coracle run --drive a", "'--disk'"),
            ("coracle run --smp 2", "'--cpus'"),
            ("coracle exec true", "'run'"),
        ] {
            let said = said(line);
            assert!(said.contains(&format!("exists: {near}")), "{line}: {said}");
            assert!(!said.contains("as a value"), "{line}: {said}");
        }
    }

    #[test]
    fn argument_that_has_another_place_is_told_so() {
        for (line, advice) in [
            ("coracle run --kernel k", "coracle run FILE"),
            ("coracle run --kernel=k", "coracle run FILE"),
            ("coracle run k initrd.img", "-i FILE"),
            ("coracle run ls -l", "after `--`"),
            ("coracle test ls -l", "after `--`"),
            ("coracle host-emulate true", "after `--`"),
            ("coracle restore snap --memory 1G", "the snapshot has fixed --memory: leave it out"),
            ("coracle restore snap -i x", "the snapshot has fixed -i: leave it out"),
            ("coracle restore snap --boot-timeout 1s", "the snapshot has fixed --boot-timeout"),
        ] {
            let said = said(line);
            assert!(said.contains(advice) && !said.contains("as a value"), "{line}: {said}");
        }
    }

    #[test]
    fn option_about_a_command_asks_for_one() {
        for line in ["coracle run --user nobody", "coracle test -w /tmp", "coracle run -e A=b"] {
            let said = said(line);
            assert!(said.contains("for a command, which comes after `--`"), "{line}: {said}");
        }
        assert!(!said("coracle host-emulate").contains("--env"));
    }

    #[test]
    fn nothing_is_named_where_nothing_is_near() {
        for line in ["coracle run --verbatim", "coracle run --x", "coracle launch", "coracle run --share x"] {
            assert!(
                !said(line).contains("exists:") && !said(line).contains("tip:"),
                "{line}: {}",
                said(line)
            );
        }
    }
}
