//! Counts that exceed their limit today, and may only decrease.

/// A count that may exceed its limit, up to a number.
pub(super) struct Ratchet {
    pub(super) name: &'static str,
    /// The maximum today. Whoever reduces the count lowers it.
    pub(super) most: usize,
}

/// The results of the checks.
#[derive(Default)]
pub(super) struct Verdicts {
    /// Violations, one per line; each of them fails the check.
    pub(super) faults: Vec<String>,
    /// Counts that have fallen below the number in their table.
    pub(super) news: Vec<String>,
}

impl Verdicts {
    /// Checks `count` against `limit`, or against the number in `listed` if that is greater.
    pub(super) fn judge(
        &mut self,
        name: &str,
        unit: &str,
        count: usize,
        limit: usize,
        listed: Option<&Ratchet>,
    ) {
        let most = listed.map_or(limit, |listed| listed.most.max(limit));
        if count > most {
            self.faults.push(format!("{name}: {count} {unit}, of which {most} are allowed"));
        }
        let Some(listed) = listed.filter(|listed| listed.most > count) else { return };
        let advice = if count <= limit { "remove its entry" } else { "lower its number" };
        self.news.push(format!("{name}: {count} {unit}, {} in the table: {advice}", listed.most));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_may_go_down_and_not_up() {
        let listed = Ratchet { name: "x", most: 9 };
        let of = |count| {
            let mut verdicts = Verdicts::default();
            verdicts.judge("x", "lines", count, 4, Some(&listed));
            (verdicts.faults.len(), verdicts.news.concat())
        };
        assert_eq!(of(10), (1, String::new()));
        assert_eq!(of(9), (0, String::new()));
        assert_eq!(of(5), (0, "x: 5 lines, 9 in the table: lower its number".to_owned()));
        assert_eq!(of(4), (0, "x: 4 lines, 9 in the table: remove its entry".to_owned()));
    }
}
