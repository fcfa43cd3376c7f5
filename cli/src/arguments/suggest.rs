//! "Did you mean": the option or command that a mistyped one is nearest to. `main` calls this before it
//! prints an error of clap's, whose own feature for it costs twenty times the code.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory, Error};
use coracle::config::nearest;

use super::Cli;

/// Adds what was probably meant to an error about an unknown option, argument or command.
pub(crate) fn add_to(error: &mut Error, arguments: &[String]) {
    let root = Cli::command();
    let command = command_of(&root, arguments);
    let kind = error.kind();
    if kind == ErrorKind::MissingRequiredArgument && lacks_command(error, command) {
        let advice =
            "--env, --user, --workdir and --ip are for a command, which stands after `--`, as in -- id -u";
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![advice.into()]));
    }
    let unknown = match kind {
        ErrorKind::UnknownArgument => ContextKind::InvalidArg,
        ErrorKind::InvalidSubcommand => ContextKind::InvalidSubcommand,
        _ => return,
    };
    let Some(ContextValue::String(unknown)) = error.get(unknown).cloned() else { return };
    // What clap says is how to pass it as a value, which was not meant.
    error.remove(ContextKind::Suggested);
    if kind == ErrorKind::InvalidSubcommand {
        let names = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
        if let Some(near) = meant(&unknown, names) {
            error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(vec![near]));
        }
    } else if let Some(near) = meant(&unknown, options(command)) {
        error.insert(ContextKind::SuggestedArg, ContextValue::String(near));
    } else if let Some(advice) = advice(&unknown, command) {
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![advice.into()]));
    }
}

/// Whether what is missing is the command that options such as `--user` are about.
fn lacks_command(error: &Error, command: &Command) -> bool {
    let has_options = command.get_arguments().any(|argument| argument.get_id() == "user");
    has_options
        && match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::Strings(missing)) => missing.iter().any(|name| name.contains("COMMAND")),
            _ => false,
        }
}

/// The one of the names that was meant: what other programs call by this name, the only one that begins so,
/// or the nearest.
fn meant(unknown: &str, known: Vec<String>) -> Option<String> {
    let other = OTHER_NAMES.iter().find(|(name, _)| *name == unknown).map(|(_, ours)| (*ours).to_owned());
    let begins = || {
        let mut long = known.iter().filter(|name| name.starts_with(unknown));
        long.next().filter(|_| long.next().is_none() && unknown.len() >= LEAST_BEGINNING).cloned()
    };
    other.filter(|ours| known.contains(ours)).or_else(begins).or_else(|| nearest(unknown, known))
}

/// Where an argument belongs that no option of `command` takes.
fn advice(unknown: &str, command: &Command) -> Option<&'static str> {
    let has = |name: &str| command.get_arguments().any(|argument| argument.get_id() == name);
    match unknown {
        "--kernel" if has("kernel") => Some("the kernel stands without an option: coracle run FILE"),
        // An option that is unknown and not near to any may be anything.
        long if long.starts_with("--") => None,
        file if !file.starts_with('-') && has("kernel") && has("initrds") => {
            Some("an initrd has its option, -i FILE; a command and its own options stand after `--`")
        }
        _ if has("command") => Some("a command and its own options stand after `--`"),
        _ => None,
    }
}

/// Names that other programs of this kind have for options and commands.
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
    ("start", "run"),
];

/// Shorter ones say nothing.
const LEAST_BEGINNING: usize = 3;

/// The whole answer to arguments of which one is not UTF-8 where that is needed: clap does not say which.
pub(crate) fn not_utf8(error: &Error, arguments: &[OsString]) -> Option<String> {
    if error.kind() != ErrorKind::InvalidUtf8 {
        return None;
    }
    let wrong = arguments.iter().find(|argument| argument.to_str().is_none())?;
    Some(format!(
        "the argument {wrong:?} is not UTF-8, which all but paths on their own and commands have to be: give the file \
         another name, or a link with one"
    ))
}

/// The command that the arguments name, as far as they do.
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
        ] {
            let said = said(line);
            assert!(said.contains(advice) && !said.contains("as a value"), "{line}: {said}");
        }
    }

    #[test]
    fn option_about_a_command_asks_for_one() {
        for line in ["coracle run --user nobody", "coracle test -w /tmp", "coracle run -e A=b"] {
            let said = said(line);
            assert!(said.contains("for a command, which stands after `--`"), "{line}: {said}");
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
