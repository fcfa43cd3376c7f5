//! A level of a document: the results of the document itself, or those of a subtest.

use super::diagnostics::{self, Before};
use super::line::{Directive, TestPoint};
use super::numbers::Numbers;
use super::tally::{Budget, Tally, TapOutcome, TapResult};

/// How a level began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// With a version line, or with a comment that names it.
    Announced,
    /// With an indented plan or result.
    Bare,
}

/// A level of a document.
#[derive(Debug)]
pub(super) struct Level {
    /// Its indentation, in columns.
    pub(super) indent: usize,
    pub(super) start: Start,
    /// The name that the result of this level has to have.
    pub(super) name: Option<String>,
    plan: Option<Plan>,
    /// The number of results of this level, without its subtests.
    pub(super) results: u64,
    pub(super) numbers: Numbers,
    /// True if the last result is a failure that is kept, so that diagnostics may be added to it.
    has_open_failure: bool,
    /// The results of this level and its subtests.
    tally: Tally,
    told: Told,
}

#[derive(Debug)]
struct Plan {
    count: u64,
    comment: String,
    /// True if the plan came after results.
    is_last: bool,
}

/// Faults that are reported only once.
#[derive(Debug, Default)]
struct Told {
    second_plan: bool,
    after_plan: bool,
}

impl Level {
    pub(super) fn new(indent: usize, start: Start, name: Option<String>) -> Level {
        Level {
            indent,
            start,
            name,
            plan: None,
            results: 0,
            numbers: Numbers::default(),
            has_open_failure: false,
            tally: Tally::default(),
            told: Told::default(),
        }
    }

    pub(super) fn has_plan(&self) -> bool {
        self.plan.is_some()
    }

    /// Returns whether the level has no lines yet.
    pub(super) fn is_new(&self) -> bool {
        self.plan.is_none() && self.results == 0
    }

    /// Returns whether the plan says that there is nothing to run.
    pub(super) fn skips_all(&self) -> bool {
        self.results == 0 && self.plan.as_ref().is_some_and(|plan| plan.count == 0)
    }

    /// Returns whether at least as many results have come as were planned.
    pub(super) fn is_fulfilled(&self) -> bool {
        self.plan.as_ref().is_some_and(|plan| self.results >= plan.count)
    }

    /// Returns the comment of the plan.
    pub(super) fn plan_comment(&self) -> &str {
        self.plan.as_ref().map_or("", |plan| &plan.comment)
    }

    /// Returns the name of the first failure.
    pub(super) fn first_failure(&self) -> Option<&str> {
        self.tally.failures.first().map(String::as_str)
    }

    /// Returns the number of planned results if there are some and none has come.
    pub(super) fn unmet_plan(&self) -> Option<u64> {
        self.plan.as_ref().filter(|plan| plan.count > 0 && self.results == 0).map(|plan| plan.count)
    }

    pub(super) fn take_plan(&mut self, count: u64, comment: String) {
        if self.plan.is_none() {
            self.plan = Some(Plan { count, comment, is_last: self.results > 0 });
        } else if !std::mem::replace(&mut self.told.second_plan, true) {
            self.tally.fault("a second plan came");
        }
    }

    /// Returns whether the last line of TAP was a failure that is kept.
    pub(super) fn has_open_failure(&self) -> bool {
        self.has_open_failure
    }

    /// Ends the diagnostics of the last result.
    pub(super) fn end_diagnostics(&mut self) {
        self.has_open_failure = false;
    }

    /// Adds a line to the diagnostics of the last result, if that is a failure.
    pub(super) fn diagnose(&mut self, line: &str, budget: &mut Budget) {
        if let Some(result) = self.tally.results.last_mut().filter(|_| self.has_open_failure) {
            diagnostics::add(&mut result.diagnostics, line, budget);
        }
    }

    /// Takes a result, with the lines before it and the subtest that it sums up.
    pub(super) fn take(
        &mut self,
        point: TestPoint,
        before: Before,
        subtest: Option<Level>,
        is_ktap: bool,
        budget: &mut Budget,
    ) {
        self.has_open_failure = false;
        self.results = self.results.saturating_add(1);
        if let Err(fault) = self.numbers.take(point.number) {
            self.tally.fault(fault);
        }
        let is_after_plan = self.plan.as_ref().is_some_and(|plan| plan.is_last);
        if is_after_plan && !std::mem::replace(&mut self.told.after_plan, true) {
            self.tally.fault("results came before and after the plan");
        }
        match subtest.filter(Level::counts) {
            Some(subtest) => self.take_sum(point, before, subtest, is_ktap, budget),
            None => self.add(point, before, budget),
        }
    }

    /// Takes a subtest that no result sums up.
    pub(super) fn take_unfinished(&mut self, subtest: Level, is_ktap: bool) {
        if !subtest.counts() {
            return;
        }
        let name = subtest.label();
        let (mut tally, _) = subtest.close(is_ktap);
        tally.cut_short(format!("no result of {name} came"));
        self.tally.merge(tally, &name);
    }

    /// Ends the level. Returns its results, and whether its plan alone says that it was skipped.
    pub(super) fn close(mut self, is_ktap: bool) -> (Tally, bool) {
        let skips_all = self.skips_all();
        match &self.plan {
            None if !is_ktap => self.tally.cut_short("no plan came"),
            None if self.results == 0 => self.tally.cut_short("no results came"),
            None => {
                if let Some(number) = self.numbers.missing() {
                    self.tally.fault(format!("number {number} is missing"));
                }
            }
            Some(plan) if self.results < plan.count => {
                self.tally.cut_short(format!("{} of {} results came", self.results, plan.count));
            }
            Some(plan) if self.results > plan.count => {
                self.tally
                    .fault(format!("{} results came of {} that were planned", self.results, plan.count));
            }
            Some(plan) if self.numbers.highest() > plan.count => {
                self.tally.fault(format!(
                    "number {} is beyond the plan of {}",
                    self.numbers.highest(),
                    plan.count
                ));
            }
            Some(_) => {}
        }
        (self.tally, skips_all)
    }

    /// Returns whether a subtest counts: indented results without a plan and an announcement are ordinary
    /// text.
    fn counts(&self) -> bool {
        self.start == Start::Announced || self.has_plan()
    }

    fn label(&self) -> String {
        self.name
            .as_deref()
            .filter(|name| !name.is_empty())
            .map_or_else(|| "a subtest".to_owned(), str::to_owned)
    }

    /// Takes the result of a subtest. It counts only if it reports a failure that the subtest does not show.
    /// Its directive applies to the whole subtest.
    fn take_sum(
        &mut self,
        point: TestPoint,
        before: Before,
        subtest: Level,
        is_ktap: bool,
        budget: &mut Budget,
    ) {
        let announced = subtest.name.clone();
        let comment = subtest.plan_comment().to_owned();
        let is_empty = subtest.results == 0;
        let (mut tally, skips_all) = subtest.close(is_ktap);
        // A name may contain a ` #` that delimits a directive in a result.
        let is_same = |name: &String| {
            name.strip_prefix(&point.name).is_some_and(|rest| rest.is_empty() || rest.starts_with(" #"))
        };
        if announced.as_ref().is_some_and(|name| !is_same(name)) {
            let ended = announced.unwrap_or_default();
            tally.fault(format!("the result of subtest `{ended}` is named `{}`", point.name));
        }
        if let Some(directive) = point.directive {
            tally.cover(outcome_of(directive));
        }
        let name = point.label();
        let is_bad = tally.is_bad();
        self.tally.merge(tally, &name);
        if skips_all && point.is_ok && point.directive.is_none() {
            let point = TestPoint { directive: Some(Directive::Skip), reason: comment, ..point };
            self.add(point, before, budget);
        } else if is_empty || (!point.is_ok && point.directive.is_none() && !is_bad) {
            self.add(point, before, budget);
        }
    }

    fn add(&mut self, point: TestPoint, before: Before, budget: &mut Budget) {
        let outcome = match (point.directive, point.is_ok) {
            (Some(directive), _) => outcome_of(directive),
            (None, true) => TapOutcome::Passed,
            (None, false) => TapOutcome::Failed,
        };
        let number = point.number.unwrap_or(self.results);
        let label = point.label();
        let TestPoint { name, reason, .. } = point;
        let result = TapResult { name, number, outcome, reason, ..TapResult::default() };
        let kept = self.tally.add(result, &label, budget);
        if let Some(result) = kept.filter(|result| result.outcome == TapOutcome::Failed) {
            self.has_open_failure = true;
            before.add_to(&mut result.diagnostics, budget);
        }
    }
}

impl TestPoint {
    /// Returns the name or, if there is none, the number.
    fn label(&self) -> String {
        match (&self.name, self.number) {
            (name, Some(number)) if name.is_empty() => number.to_string(),
            (name, None) if name.is_empty() => "?".to_owned(),
            (name, _) => name.clone(),
        }
    }
}

fn outcome_of(directive: Directive) -> TapOutcome {
    match directive {
        Directive::Skip => TapOutcome::Skipped,
        Directive::Todo => TapOutcome::Todo,
    }
}
