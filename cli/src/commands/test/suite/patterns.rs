//! Compiles regular expressions: each of them once, however many cases use it, and all of them within a
//! memory limit.

use std::borrow::Cow;
use std::collections::HashMap;

use regex_lite::{Regex, RegexBuilder};

/// Compiles patterns and keeps them.
#[derive(Debug)]
pub(crate) struct Compiler {
    known: HashMap<String, Regex>,
    /// The number of bytes left for further patterns.
    room: usize,
}

impl Default for Compiler {
    fn default() -> Self {
        Self { known: HashMap::new(), room: MAX_COMPILED }
    }
}

impl Compiler {
    /// Compiles the patterns of the option or key `what`.
    ///
    /// # Errors
    /// A pattern cannot be compiled, or all patterns together take too much memory.
    pub(crate) fn compile(&mut self, what: &str, patterns: &[String]) -> Result<Vec<Regex>, String> {
        patterns.iter().map(|pattern| self.one(what, pattern)).collect()
    }

    /// Compiles a single pattern.
    ///
    /// # Errors
    /// See [`Compiler::compile`].
    pub(super) fn one(&mut self, what: &str, pattern: &str) -> Result<Regex, String> {
        // Usually an unset variable of a script; every line would match.
        if pattern.is_empty() {
            return Err(format!("{what}: the empty pattern matches every line; write a part of the line"));
        }
        if let Some(known) = self.known.get(pattern) {
            return Ok(known.clone());
        }
        let mut reason = String::new();
        // A compiled pattern does not report its size, so the smallest limit that it fits counts as its size.
        for size in SIZES {
            match RegexBuilder::new(pattern).size_limit(size).build() {
                Ok(regex) => {
                    self.room = self.room.checked_sub(size).ok_or_else(|| too_large(what, pattern))?;
                    self.known.insert(pattern.to_owned(), regex.clone());
                    return Ok(regex);
                }
                Err(error) => reason = error.to_string(),
            }
        }
        Err(format!("{what} `{}`: it is not a regular expression: {reason}", excerpt(pattern)))
    }
}

fn too_large(what: &str, pattern: &str) -> String {
    format!(
        "{what} `{}`: with it, the patterns take more than {} MiB when compiled; repeat less, as in `x{{1000}}`",
        excerpt(pattern),
        MAX_COMPILED >> 20
    )
}

/// Shortens a pattern for use in a sentence.
fn excerpt(pattern: &str) -> Cow<'_, str> {
    match pattern.char_indices().nth(EXCERPT_CHARS) {
        Some((end, _)) => Cow::Owned(format!("{} ...", pattern.get(..end).unwrap_or_default())),
        None => Cow::Borrowed(pattern),
    }
}

const EXCERPT_CHARS: usize = 200;
/// The memory that all compiled patterns of a suite may take, in bytes: enough for some thousand usual ones.
const MAX_COMPILED: usize = 16 << 20;
/// The size limits to try for one pattern, in bytes. The last one is enough to repeat many thousand
/// characters.
const SIZES: [usize; 3] = [16 << 10, 128 << 10, 1 << 20];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_is_compiled_once() {
        let mut compiler = Compiler::default();
        let patterns = vec!["a".to_owned(), "a".to_owned()];
        assert_eq!(compiler.compile("expect", &patterns).unwrap().len(), 2);
        compiler.compile("reject", &patterns).unwrap();
        assert_eq!(compiler.room, MAX_COMPILED - SIZES[0]);
    }

    #[test]
    fn empty_pattern_is_refused() {
        let error = Compiler::default().compile("--expect", &[String::new()]).unwrap_err();
        assert!(error.starts_with("--expect: the empty pattern matches every line"), "{error}");
    }

    #[test]
    fn patterns_have_a_limit_each_and_together() {
        let mut compiler = Compiler::default();
        let one = |compiler: &mut Compiler, text: String| compiler.compile("expect", &[text]);
        let error = one(&mut compiler, "(x{1000}){1000}".to_owned()).unwrap_err();
        assert!(error.contains("size"), "{error}");
        let large = |number: usize| format!("{number}(x{{100}}){{100}}");
        let fit = (0..1000).take_while(|number| one(&mut compiler, large(*number)).is_ok()).count();
        assert_eq!(fit, MAX_COMPILED / SIZES[2]);
        let error = one(&mut compiler, large(fit)).unwrap_err();
        assert!(error.contains("the patterns take more than 16 MiB"), "{error}");
        // A pattern that is already compiled costs nothing.
        one(&mut compiler, large(0)).unwrap();
    }

    #[test]
    fn error_is_a_sentence_however_long_the_pattern_is() {
        for pattern in ["(".repeat(100_000), "(a|b){50}".repeat(12_000)] {
            let error = Compiler::default().compile("--expect", &[pattern]).unwrap_err();
            assert!(error.starts_with("--expect `(") && error.len() < 400, "{} bytes", error.len());
        }
    }
}
