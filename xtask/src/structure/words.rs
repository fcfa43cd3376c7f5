//! Phrases over which a reader stumbles, and docs that say nothing. CONTRIBUTING.md, "English", shows how to
//! write instead.

use super::ratchet::{Ratchet, Verdicts};
use super::sources::Source;

/// Phrases that should not occur. A number above 0 is how often a phrase still does; it may only decrease.
const PHRASES: &[Ratchet] = &[
    Ratchet { name: "can be had", most: 0 },
    Ratchet { name: "behind commas", most: 0 },
    Ratchet { name: "in work", most: 0 },
    Ratchet { name: "anew", most: 0 },
    Ratchet { name: "is no", most: 0 },
    Ratchet { name: "are no", most: 0 },
];

/// Longer phrases that are good English although they contain a bad one.
const GOOD: &[(&str, &str)] = &[
    ("is no", "is no longer"),
    ("is no", "is no more"),
    ("is no", "is no faster"),
    ("is no", "there is no"),
    ("are no", "are no longer"),
    ("are no", "are no more"),
    ("are no", "there are no"),
];

/// Docs of one line that repeat the name of their item or refer to nothing.
const HOLLOW: &[Ratchet] = &[
    Ratchet { name: "As given.", most: 0 },
    Ratchet { name: "As there.", most: 0 },
    Ratchet { name: "As written.", most: 0 },
    Ratchet { name: "As configured.", most: 0 },
    Ratchet { name: "Why.", most: 0 },
    Ratchet { name: "Which.", most: 0 },
    Ratchet { name: "Where.", most: 0 },
    Ratchet { name: "With what.", most: 0 },
    Ratchet { name: "What it is.", most: 0 },
    Ratchet { name: "What the system said.", most: 0 },
    Ratchet { name: "What was tried.", most: 0 },
];

/// Words with which no doc begins: a reader does not know what they refer to. The number is how often one
/// does.
const PRONOUNS: &[&str] = &["What", "Who", "Which", "Where", "It", "They", "Those", "One"];
const PRONOUN_DOCS: Ratchet = Ratchet { name: "docs that begin with a pronoun", most: 0 };

/// Counts them in `sources`: Rust (comments and strings alike), Markdown and TOML.
pub(super) fn check(sources: &[Source], verdicts: &mut Verdicts) {
    let sources: Vec<&Source> = sources.iter().filter(|source| source.path != OWN_PATH).collect();
    let texts: Vec<String> = sources.iter().map(|source| flat(&source.text)).collect();
    for phrase in PHRASES {
        let count = texts.iter().map(|text| count(text, phrase.name)).sum();
        verdicts.judge(&format!("the phrase '{}'", phrase.name), "times", count, 0, Some(phrase));
    }
    for doc in HOLLOW {
        let lines = sources.iter().flat_map(|source| source.text.lines());
        let count = lines.filter(|line| line.trim() == format!("/// {}", doc.name)).count();
        verdicts.judge(&format!("the doc '{}'", doc.name), "times", count, 0, Some(doc));
    }
    let count = sources.iter().map(|source| pronoun_docs(&source.text).count()).sum();
    verdicts.judge(PRONOUN_DOCS.name, "times", count, 0, Some(&PRONOUN_DOCS));
}

/// Returns the lines, from 0, of docs that begin with a pronoun.
fn pronoun_docs(text: &str) -> impl Iterator<Item = usize> {
    let before = std::iter::once("").chain(text.lines());
    text.lines().zip(before).enumerate().filter_map(|(index, (line, before))| {
        let (mark, doc) = line.trim().split_once(' ')?;
        let is_first = matches!(mark, "///" | "//!") && !before.trim().starts_with(mark);
        let word = doc.split(|c: char| !c.is_alphanumeric()).next()?;
        (is_first && PRONOUNS.contains(&word)).then_some(index)
    })
}

/// Returns the locations of the phrases and docs in `sources`.
pub(super) fn places(sources: &[Source]) -> Vec<String> {
    let mut places = Vec::new();
    for source in sources.iter().filter(|source| source.path != OWN_PATH) {
        for (index, line) in source.text.lines().enumerate() {
            let is_phrase = PHRASES.iter().any(|phrase| count(&flat(line), phrase.name) > 0);
            if is_phrase || HOLLOW.iter().any(|doc| line.trim() == format!("/// {}", doc.name)) {
                places.push(format!("{}:{}: {}", source.path, index + 1, line.trim()));
            }
        }
        let docs =
            pronoun_docs(&source.text).map(|index| format!("{}:{}: a pronoun", source.path, index + 1));
        places.extend(docs);
    }
    places
}

/// Returns the text in lower case without line breaks and comment marks, so that a phrase may span lines.
fn flat(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let line = line.trim().trim_end_matches('\\').trim_end();
        line.trim_start_matches(['/', '!', '#']).trim_start()
    });
    lines.collect::<Vec<_>>().join(" ").to_lowercase()
}

/// Counts `phrase` in `text` as whole words, without its good uses.
fn count(text: &str, phrase: &str) -> usize {
    let of =
        |phrase: &str| text.match_indices(phrase).filter(|(at, _)| is_whole(text, *at, phrase.len())).count();
    let good: usize = GOOD.iter().filter(|(bad, _)| *bad == phrase).map(|(_, good)| of(good)).sum();
    of(phrase).saturating_sub(good)
}

fn is_whole(text: &str, at: usize, len: usize) -> bool {
    let before = text.get(..at).and_then(|text| text.chars().next_back());
    let after = text.get(at + len..).and_then(|text| text.chars().next());
    let is_part =
        |one: Option<char>| one.is_some_and(|one| one.is_alphanumeric() || one == '_' || one == '-');
    !is_part(before) && !is_part(after)
}

/// The path of this file, which has to contain the phrases.
const OWN_PATH: &str = "xtask/src/structure/words.rs";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phrases_are_whole_words_over_line_breaks_without_their_good_uses() {
        assert_eq!(count(&flat("//! It can\n//! be had; it CAN BE HAD."), "can be had"), 2);
        assert_eq!(count(&flat("\"starts \\\n    anew\", janew, anew_one"), "anew"), 1);
        assert_eq!(
            count(&flat("It is no file. There is no file. It is no longer one. It is not."), "is no"),
            1
        );
    }

    #[test]
    fn docs_that_begin_with_a_pronoun_are_found_at_their_first_line() {
        let text = "/// What it is.\nfn a() {}\n/// A doc.\n/// It goes on.\nfn b() {}\n\
            //! One, two.\n// It is code.\n";
        assert_eq!(pronoun_docs(text).collect::<Vec<_>>(), [0, 5]);
    }

    #[test]
    fn one_more_than_the_table_has_is_a_fault() {
        let source = |text: String| Source { path: "src/a.rs".to_owned(), text };
        let faults = |text| {
            let mut verdicts = Verdicts::default();
            check(&[source(text)], &mut verdicts);
            verdicts.faults.into_iter().filter(|fault| fault.contains('\'')).collect::<Vec<_>>()
        };
        for table in [PHRASES, HOLLOW] {
            for bad in table {
                let line = format!("/// {}\n", bad.name);
                assert!(faults(line.repeat(bad.most)).is_empty(), "{}", bad.name);
                assert_eq!(faults(line.repeat(bad.most + 1)).len(), 1, "{}", bad.name);
                let place = format!("src/a.rs:1: /// {}", bad.name);
                assert_eq!(places(&[source(line)]).first(), Some(&place));
            }
        }
    }
}
