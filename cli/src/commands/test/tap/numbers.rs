//! The numbers of the results of one level: each may come once, in any order.

use std::collections::BTreeSet;

/// The numbers that have come.
#[derive(Debug)]
pub(super) struct Numbers {
    /// The first number that has not come.
    next: u64,
    /// The numbers beyond it that have come.
    ahead: BTreeSet<u64>,
    highest: u64,
}

impl Default for Numbers {
    fn default() -> Numbers {
        Numbers { next: 1, ahead: BTreeSet::new(), highest: 0 }
    }
}

impl Numbers {
    /// Takes the number of a result, or assigns one to a result without a number.
    ///
    /// # Errors
    /// What is wrong with the number, as a sentence.
    pub(super) fn take(&mut self, number: Option<u64>) -> Result<(), String> {
        let number = number.unwrap_or(self.next);
        self.highest = self.highest.max(number);
        if number == 0 {
            return Err("a result has number 0".to_owned());
        }
        if number < self.next || self.ahead.contains(&number) {
            return Err(format!("number {number} came twice"));
        }
        if number != self.next && self.ahead.len() >= AHEAD {
            return Err(format!("number {number} came far ahead of {}", self.next));
        }
        self.ahead.insert(number);
        while self.ahead.remove(&self.next) {
            self.next = self.next.saturating_add(1);
        }
        Ok(())
    }

    /// Returns whether a result with this number has come.
    pub(super) fn has(&self, number: u64) -> bool {
        number != 0 && (number < self.next || self.ahead.contains(&number))
    }

    /// Returns the highest number that has come.
    pub(super) fn highest(&self) -> u64 {
        self.highest
    }

    /// Returns the first missing number below one that has come.
    pub(super) fn missing(&self) -> Option<u64> {
        (!self.ahead.is_empty()).then_some(self.next)
    }
}

/// How far ahead a number may be. Tests that run in parallel finish out of order by about the number of CPUs,
/// which is less.
const AHEAD: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_in_any_order_and_each_once() {
        let mut numbers = Numbers::default();
        for number in [Some(2), Some(3), Some(1), None, Some(5)] {
            assert_eq!(numbers.take(number), Ok(()), "{number:?}");
        }
        assert_eq!((numbers.highest(), numbers.missing()), (5, None));
        for number in [0, 1, 5] {
            assert!(numbers.take(Some(number)).is_err(), "{number}");
        }
        assert_eq!(numbers.take(Some(7)), Ok(()));
        assert_eq!(numbers.missing(), Some(6));
        assert!(numbers.has(7) && !numbers.has(6) && !numbers.has(0));
    }

    #[test]
    fn numbers_far_apart_take_bounded_memory() {
        let mut numbers = Numbers::default();
        let refused =
            (0..100_000).filter(|number| numbers.take(Some(u64::MAX - 2 * number)).is_err()).count();
        assert_eq!((numbers.ahead.len(), refused), (AHEAD, 100_000 - AHEAD));
        assert_eq!(numbers.take(Some(1)), Ok(()));
    }
}
