//! "Did you mean": the option or command that a mistyped one is nearest to. `main` calls this before it prints an
//! error of clap's, whose own feature for it costs twenty times the code.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory, Error};

use super::Cli;
use crate::nearest::nearest;

/// Adds the nearest name to an error about an unknown option or command, if one is near.
pub(crate) fn add_to(error: &mut Error, arguments: &[String]) {
    let root = Cli::command();
    let (unknown, known, place) = match error.kind() {
        ErrorKind::UnknownArgument => {
            (ContextKind::InvalidArg, options(command_of(&root, arguments)), ContextKind::SuggestedArg)
        }
        ErrorKind::InvalidSubcommand => {
            let command = command_of(&root, arguments);
            let names = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
            (ContextKind::InvalidSubcommand, names, ContextKind::SuggestedSubcommand)
        }
        _ => return,
    };
    let Some(ContextValue::String(unknown)) = error.get(unknown) else { return };
    let Some(near) = nearest(unknown, known) else { return };
    let value = match place {
        ContextKind::SuggestedArg => ContextValue::String(near),
        _ => ContextValue::Strings(vec![near]),
    };
    // What clap says else is how to pass it as a value, which was not meant.
    error.remove(ContextKind::Suggested);
    error.insert(place, value);
}

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
        ] {
            let said = said(line);
            assert!(said.contains(&format!("exists: {near}")), "{line}: {said}");
            assert!(!said.contains("as a value"), "{line}: {said}");
        }
    }

    #[test]
    fn nothing_is_named_where_nothing_is_near() {
        for line in ["coracle run --verbatim", "coracle run --x", "coracle launch", "coracle run --share x"] {
            assert!(!said(line).contains("exists:"), "{line}: {}", said(line));
        }
    }
}
