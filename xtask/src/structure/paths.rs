//! The `crate::` and `super::` paths of a source file, as paths from the crate's root.
//!
//! It reads tokens, so that paths in macros count, and those in comments and strings do not.

use anyhow::{Context, Result};
use proc_macro2::{Delimiter, Group, Ident, TokenStream, TokenTree};

/// Returns the paths that `source` names, cut to `depth` segments. `module` is the file's own path from the
/// root.
///
/// # Errors
/// The source is not valid Rust.
pub(super) fn of_file(source: &str, module: &[String], depth: usize) -> Result<Vec<Vec<String>>> {
    let tokens: TokenStream = source.parse().ok().context("its tokens cannot be read")?;
    let mut reader = Reader { depth, paths: Vec::new() };
    reader.read(tokens, module);
    Ok(reader.paths)
}

/// Returns the names that `pub use` or `pub(..) use` re-exports at the root, with the room that each comes
/// from.
///
/// # Errors
/// The source is not valid Rust.
pub(super) fn exports(source: &str) -> Result<Vec<(String, String)>> {
    let tokens: TokenStream = source.parse().ok().context("its tokens cannot be read")?;
    let trees: Vec<TokenTree> = tokens.into_iter().collect();
    let mut exports = Vec::new();
    for (index, tree) in trees.iter().enumerate() {
        let mut rest = trees.iter().skip(index + 1).cloned().peekable();
        if is_word(tree, "use")
            && let Some(TokenTree::Ident(room)) = rest.next()
        {
            let mut reader = Reader { depth: usize::MAX, paths: Vec::new() };
            let names: TokenStream = rest.take_while(|tree| !is_mark(tree, ';')).collect();
            reader
                .tree(&mut names.into_iter().collect::<Vec<_>>().into_iter().peekable(), &[room.to_string()]);
            let last = |path: Vec<String>| path.last().cloned().map(|name| (name, room.to_string()));
            exports.extend(reader.paths.into_iter().filter_map(last));
        }
    }
    Ok(exports)
}

struct Reader {
    depth: usize,
    paths: Vec<Vec<String>>,
}

type Trees = std::iter::Peekable<std::vec::IntoIter<TokenTree>>;

impl Reader {
    fn read(&mut self, tokens: TokenStream, module: &[String]) {
        let mut trees = tokens.into_iter().collect::<Vec<_>>().into_iter().peekable();
        while let Some(tree) = trees.next() {
            match tree {
                TokenTree::Ident(word) if word == "mod" => self.module(&mut trees, module),
                TokenTree::Ident(word) if word == "crate" => self.tree(&mut trees, &[]),
                TokenTree::Ident(word) if word == "super" => self.super_chain(&mut trees, module),
                TokenTree::Group(group) => self.read(group.stream(), module),
                _ => {}
            }
        }
    }

    /// Handles `mod name { .. }`, whose `super` is this module.
    fn module(&mut self, trees: &mut Trees, module: &[String]) {
        let Some(TokenTree::Ident(name)) = trees.next() else { return };
        if let Some(body) = trees.next_if(|tree| group(tree, Delimiter::Brace).is_some())
            && let TokenTree::Group(body) = body
        {
            let inner: Vec<String> = module.iter().cloned().chain([name.to_string()]).collect();
            self.read(body.stream(), &inner);
        }
    }

    fn super_chain(&mut self, trees: &mut Trees, module: &[String]) {
        let mut base = module.split_last().map_or(&[][..], |(_, base)| base);
        while let Some(next) = after_separator(trees) {
            match next {
                TokenTree::Ident(word) if word == "super" => {
                    base = base.split_last().map_or(&[][..], |(_, base)| base);
                }
                tree => return self.continued(tree, trees, base),
            }
        }
    }

    /// Handles the use tree or path that follows `base`, and records every leaf.
    fn tree(&mut self, trees: &mut Trees, base: &[String]) {
        match after_separator(trees) {
            Some(tree) => self.continued(tree, trees, base),
            None => self.record(base),
        }
    }

    fn continued(&mut self, tree: TokenTree, trees: &mut Trees, base: &[String]) {
        match tree {
            TokenTree::Ident(word) => self.tree(trees, &with(base, &word)),
            TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => self.braces(&group, base),
            _ => self.record(base),
        }
    }

    /// Handles `{a, b::c}` after `base::`.
    fn braces(&mut self, group: &Group, base: &[String]) {
        let mut trees = group.stream().into_iter().collect::<Vec<_>>().into_iter().peekable();
        while let Some(tree) = trees.next() {
            match tree {
                TokenTree::Ident(word) if word == "self" => self.record(base),
                TokenTree::Ident(word) => self.tree(&mut trees, &with(base, &word)),
                TokenTree::Group(inner) => self.braces(&inner, base),
                TokenTree::Punct(_) | TokenTree::Literal(_) => continue,
            }
            // Skip to the comma: `as name` is not a path.
            while trees.next_if(|tree| !is_mark(tree, ',')).is_some() {}
        }
    }

    fn record(&mut self, path: &[String]) {
        self.paths.push(path.iter().take(self.depth).cloned().collect());
    }
}

/// Returns the token after `::`, if that comes next.
fn after_separator(trees: &mut Trees) -> Option<TokenTree> {
    trees.next_if(|tree| is_mark(tree, ':'))?;
    trees.next_if(|tree| is_mark(tree, ':'))?;
    trees.next()
}

fn with(base: &[String], word: &Ident) -> Vec<String> {
    base.iter().cloned().chain([word.to_string()]).collect()
}

fn group(tree: &TokenTree, delimiter: Delimiter) -> Option<&Group> {
    match tree {
        TokenTree::Group(group) if group.delimiter() == delimiter => Some(group),
        _ => None,
    }
}

fn is_mark(tree: &TokenTree, mark: char) -> bool {
    matches!(tree, TokenTree::Punct(punct) if punct.as_char() == mark)
}

fn is_word(tree: &TokenTree, word: &str) -> bool {
    matches!(tree, TokenTree::Ident(ident) if ident == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(source: &str, module: &str) -> Vec<String> {
        let module: Vec<String> = module.split("::").map(str::to_owned).collect();
        of_file(source, &module, 2).unwrap().iter().map(|path| path.join("::")).collect()
    }

    #[test]
    fn paths_are_read_from_uses_bodies_and_macros_and_not_from_comments() {
        let source = r#"
            //! crate::comment::x
            use crate::a::{self, B, c::{D, E as F}};
            use crate::{g, h::I};
            fn f() -> crate::j::K { assert!(crate::l::m(), "crate::text::n"); }
        "#;
        assert_eq!(paths(source, "room"), ["a", "a::B", "a::c", "a::c", "g", "h::I", "j::K", "l::m"]);
    }

    #[test]
    fn super_chains_are_followed_through_inline_modules() {
        let source = "use super::a; mod tests { use super::*; use super::super::super::b::{C}; }";
        assert_eq!(paths(source, "room::inner"), ["room::a", "room::inner", "b::C"]);
    }

    #[test]
    fn names_of_the_root_lead_to_their_rooms() {
        let source = "mod a; pub use a::{B, c::{D, E as F}};\npub use g::H;";
        let names = exports(source).unwrap();
        let names: Vec<_> = names.iter().map(|(name, room)| format!("{name} {room}")).collect();
        assert_eq!(names, ["B a", "D a", "E a", "H g"]);
    }

    #[test]
    fn what_is_not_rust_is_refused() {
        assert!(of_file("fn f( {", &[], 1).is_err());
    }
}
