//! "Did you mean": finds the known name that is nearest to a mistyped option, command or key.

/// Returns the known name with the smallest distance: at most two, and less than the name's length. Of two,
/// the one with the same first letter.
pub fn nearest(unknown: &str, known: Vec<String>) -> Option<String> {
    let first = |name: &str| name.chars().find(|letter| *letter != '-');
    let ranks =
        known.into_iter().map(|name| (distance(unknown, &name), first(&name) != first(unknown), name));
    let (distance, _, name) = ranks.min()?;
    (distance <= 2 && distance < name.trim_start_matches('-').len()).then_some(name)
}

/// Returns how many letters have to be added, removed or replaced (Levenshtein distance).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    // The distances of the part of `from` that was read to each non-empty beginning of `to`.
    let mut row: Vec<usize> = (1..=to.len()).collect();
    let mut read = 0;
    for letter in from.chars().take(LONGEST) {
        let mut diagonal = read;
        read += 1;
        let mut left = read;
        for (cell, other) in row.iter_mut().zip(&to) {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = *cell;
            *cell = replaced.min(diagonal + 1).min(left + 1);
            left = *cell;
        }
    }
    row.last().copied().unwrap_or(read)
}

/// No name is longer, so the rest of a longer argument does not matter.
const LONGEST: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_changes() {
        for (from, to, count) in
            [("", "", 0), ("", "ab", 2), ("ab", "", 2), ("abc", "acb", 2), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(from, to), count, "{from} {to}");
        }
        assert_eq!(distance(&"x".repeat(1 << 20), "x"), LONGEST - 1);
    }
}
