//! The names in a source file, with their lines: identifiers and string literals, without docs, comments and
//! test code.

use anyhow::{Context, Result};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A name in code.
pub(super) struct Name {
    /// Its line, from 1.
    pub(super) line: usize,
    /// The identifier, or the literal with its quotes.
    pub(super) text: String,
    /// The preceding segment, in a path.
    pub(super) within: Option<String>,
}

/// Returns the names of `source`, in order.
///
/// # Errors
/// The source is not valid Rust.
pub(super) fn of_file(source: &str) -> Result<Vec<Name>> {
    let tokens: TokenStream = source.parse().ok().context("its tokens cannot be read")?;
    let mut names = Vec::new();
    read(tokens, &mut names);
    Ok(names)
}

/// Returns the variants of an enum.
///
/// # Errors
/// The source is not valid Rust.
pub(super) fn variants(source: &str, name: &str) -> Result<Vec<String>> {
    let tokens: TokenStream = source.parse().ok().context("its tokens cannot be read")?;
    let mut trees = tokens.into_iter();
    while let Some(tree) = trees.next() {
        if matches!(&tree, TokenTree::Ident(word) if word == "enum")
            && matches!(trees.next(), Some(TokenTree::Ident(word)) if word == name)
            && let Some(TokenTree::Group(body)) = trees.next()
        {
            // Fields and attributes are in groups.
            let names = body.stream().into_iter().filter_map(|tree| match tree {
                TokenTree::Ident(variant) => Some(variant.to_string()),
                _ => None,
            });
            return Ok(names.collect());
        }
    }
    Ok(Vec::new())
}

fn read(tokens: TokenStream, names: &mut Vec<Name>) {
    let trees: Vec<TokenTree> = tokens.into_iter().collect();
    let mut rest = trees.as_slice();
    while let [tree, following @ ..] = rest {
        rest = following;
        match tree {
            TokenTree::Punct(punct) if punct.as_char() == '#' => rest = after_attribute(following),
            TokenTree::Punct(_) => {}
            TokenTree::Group(group) => read(group.stream(), names),
            TokenTree::Ident(_) | TokenTree::Literal(_) => {
                let before = trees.get(..trees.len() - following.len() - 1).unwrap_or_default();
                names.push(Name {
                    line: tree.span().start().line,
                    text: tree.to_string(),
                    within: segment_before(before),
                });
            }
        }
    }
}

/// Returns `name` if `trees` end with `name ::`.
fn segment_before(trees: &[TokenTree]) -> Option<String> {
    let [.., TokenTree::Ident(segment), TokenTree::Punct(one), TokenTree::Punct(other)] = trees else {
        return None;
    };
    (one.as_char() == ':' && other.as_char() == ':').then(|| segment.to_string())
}

/// Skips what follows a `#` and does not count: a doc, or an item that is for tests only.
fn after_attribute(trees: &[TokenTree]) -> &[TokenTree] {
    let (attribute, rest) = match trees {
        [TokenTree::Group(attribute), rest @ ..] => (attribute, rest),
        [TokenTree::Punct(mark), TokenTree::Group(attribute), rest @ ..] if mark.as_char() == '!' => {
            (attribute, rest)
        }
        _ => return trees,
    };
    let text = attribute.stream().to_string().replace(' ', "");
    match text.as_str() {
        "cfg(test)" => after_item(rest),
        text if text.starts_with("doc=") => rest,
        _ => trees,
    }
}

/// Returns what follows an item, which ends with a body in braces or a semicolon.
fn after_item(trees: &[TokenTree]) -> &[TokenTree] {
    let is_end = |tree: &TokenTree| match tree {
        TokenTree::Punct(punct) => punct.as_char() == ';',
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        _ => false,
    };
    let end = trees.iter().position(is_end).map_or(trees.len(), |end| end + 1);
    trees.get(end..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docs_comments_and_tests_do_not_count() {
        let source = r#"
            //! inner doc
            /// outer doc
            #[derive(Debug)]
            struct A { b: c::D } // comment
            #[cfg(test)]
            #[allow(x)]
            mod tests { fn gone() {} }
            fn last() { say!("text") }
        "#;
        let names = of_file(source).unwrap();
        let shown: Vec<_> = names.iter().map(|name| name.text.as_str()).collect();
        assert_eq!(shown, ["derive", "Debug", "struct", "A", "b", "c", "D", "fn", "last", "say", "\"text\""]);
        let within = names.iter().find(|name| name.text == "D").unwrap();
        assert_eq!((within.line, within.within.as_deref()), (5, Some("c")));
    }
}
