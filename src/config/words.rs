//! Comma-separated lists: the values of options such as `PATH,key=value,flag`, in which `,,` stands for a
//! comma in the text. Every option whose list can hold a path is parsed here.

/// An entry of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Word {
    /// The text, with `,,` replaced by `,`.
    pub text: String,
    /// The length of the key: the part before the first `=`, or the whole text.
    key: usize,
}

impl Word {
    fn new(text: String) -> Word {
        let key = text.find('=').unwrap_or(text.len());
        Word { text, key }
    }

    /// Creates an entry that is only a key.
    pub(super) fn flag(key: &str) -> Word {
        Word { text: key.to_owned(), key: key.len() }
    }

    /// Creates an entry of a key and its value.
    pub(super) fn pair(key: &str, value: &str) -> Word {
        Word { text: format!("{key}={value}"), key: key.len() }
    }

    /// Returns the part before the first `=`, or the whole text.
    pub(super) fn key(&self) -> &str {
        self.text.get(..self.key).unwrap_or_default()
    }

    /// Returns the part after the first `=`.
    pub(super) fn value(&self) -> Option<&str> {
        self.text.get(self.key + 1..)
    }
}

/// Splits a list into its entries, from the left: two commas are one in the text, a single comma ends the
/// entry.
pub(super) fn split(list: &str) -> Vec<Word> {
    let (mut words, mut text) = (Vec::new(), String::new());
    let mut letters = list.chars().peekable();
    while let Some(letter) = letters.next() {
        if letter == ',' && letters.next_if_eq(&',').is_none() {
            words.push(Word::new(std::mem::take(&mut text)));
        } else {
            text.push(letter);
        }
    }
    words.push(Word::new(text));
    words
}

/// Escapes a text for use in a list.
pub(super) fn escaped(text: &str) -> String {
    text.replace(',', ",,")
}

/// Checks that no key is repeated; the error is the text of the second entry.
pub(super) fn once(words: Vec<Word>) -> Result<Vec<Word>, String> {
    for (index, word) in words.iter().enumerate() {
        if words.iter().take(index).any(|before| before.key() == word.key()) {
            return Err(word.text.clone());
        }
    }
    Ok(words)
}

/// Returns the path that is the first entry, with or without `path=`, and the entries after it; `None` if the
/// path is empty.
pub(super) fn path_and_words(list: &str) -> Option<(String, Vec<Word>)> {
    let mut words = split(list);
    let first = words.remove(0).text;
    let path = first.strip_prefix("path=").unwrap_or(&first);
    (!path.is_empty()).then(|| (path.to_owned(), words))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(list: &str) -> Vec<String> {
        split(list).into_iter().map(|word| word.text).collect()
    }

    #[test]
    fn two_commas_are_one_of_the_text() {
        for (list, expected) in [
            ("", &[""][..]),
            ("a,b", &["a", "b"]),
            ("a,,b,ro", &["a,b", "ro"]),
            (",,,ro", &[",", "ro"]),
            ("a,,,,b,", &["a,,b", ""]),
        ] {
            assert_eq!(texts(list), expected, "{list}");
        }
        let text = ",a,,b,c,,,";
        assert_eq!(texts(&escaped(text)), [text]);
    }

    #[test]
    fn key_and_value_are_split_at_the_first_equals_sign() {
        let words = split("ro,id=a=b,=c,d=");
        let parts: Vec<_> = words.iter().map(|word| (word.key(), word.value())).collect();
        assert_eq!(parts, [("ro", None), ("id", Some("a=b")), ("", Some("c")), ("d", Some(""))]);
    }

    #[test]
    fn key_comes_once() {
        assert_eq!(once(split("ro,id=a,ro=1,id=b")), Err("ro=1".into()));
        assert_eq!(once(split("ro,id=a")).map(|words| words.len()), Ok(2));
    }

    #[test]
    fn path_is_the_first_word() {
        for text in ["disk,ro", "path=disk,ro"] {
            let (path, words) = path_and_words(text).unwrap();
            assert_eq!((path.as_str(), words[0].key()), ("disk", "ro"), "{text}");
        }
        assert_eq!(path_and_words("path=a,,b,,c").unwrap(), ("a,b,c".into(), Vec::new()));
        assert!(path_and_words("").is_none() && path_and_words("path=,ro").is_none());
    }
}
