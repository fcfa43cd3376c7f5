//! Counts that are above their limit today: each may only go down.

/// A count that may be above the limit, up to a number.
pub(super) struct Ratchet {
    pub(super) name: &'static str,
    /// What it may be at most. Whoever brings the count down lowers it.
    pub(super) most: usize,
}

/// What the checks have found.
#[derive(Default)]
pub(super) struct Verdicts {
    /// One line each; any of them fails the check.
    pub(super) faults: Vec<String>,
    /// Counts that have gone down below the number in their table.
    pub(super) news: Vec<String>,
}

impl Verdicts {
    /// Holds `count` against `limit`, or against the number of `listed` where that is greater.
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
