//! A document, line by line: its levels, its plan, and the YAML blocks in it.

use super::diagnostics::{self, Before};
use super::level::{Level, Start};
use super::line::{Line, TestPoint};
use super::tally::{Budget, Tally, TapOutcome, TapResult};

/// A document that has begun.
#[derive(Debug)]
pub(super) struct Document {
    /// None for one without a version line.
    version: Option<Dialect>,
    /// From the document itself to the innermost subtest. Never empty.
    levels: Vec<Level>,
    /// What comments announced and has not come: their indentation, deeper from one to the next, and the
    /// name.
    announced: Vec<(usize, Option<String>)>,
    yaml: Yaml,
    /// What may say why the next test fails.
    before: Before,
    bailed_out: Option<String>,
    /// A result that is not indented has had a number.
    is_numbered: bool,
    is_too_deep: bool,
}

/// Which rules a document says that it follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Tap,
    Ktap,
}

/// Where a YAML block may begin, or does.
#[derive(Debug, Clone, Copy)]
enum Yaml {
    No,
    /// After a result of this indentation.
    May {
        result: usize,
    },
    /// Its lines have at least this indentation.
    In {
        indent: usize,
    },
}

impl Document {
    pub(super) fn new(version: Option<Dialect>) -> Document {
        Document {
            version,
            levels: vec![Level::new(0, Start::Announced, None)],
            announced: Vec::new(),
            yaml: Yaml::No,
            before: Before::default(),
            bailed_out: None,
            is_numbered: false,
            is_too_deep: false,
        }
    }

    /// Takes a line of this indentation: whether it is part of the document.
    pub(super) fn feed(&mut self, indent: usize, text: &str, line: Line, budget: &mut Budget) -> bool {
        if self.is_yaml(indent, text, &line) {
            self.note_yaml(indent, text, &line, budget);
            return true;
        }
        self.note(indent, text, &line, budget);
        if let Line::BailOut { reason } = line {
            self.bailed_out.get_or_insert(reason);
            return true;
        }
        // What is indented in another way than subtests is not a result (TAP 14, "Subtest Parsing"; KTAP,
        // "Nested tests").
        if !indent.is_multiple_of(if self.is_ktap() { 2 } else { 4 }) {
            return false;
        }
        match line {
            Line::Version { .. } => self.open(indent),
            Line::Subtest { name } => self.announce(indent, name),
            Line::Plan { count, comment } => self.plan(indent, count, comment),
            Line::Result(point) => self.result(indent, point, budget),
            Line::BailOut { .. } | Line::YamlStart | Line::Comment | Line::Other => false,
        }
    }

    /// Whether a line of this indentation is part of a YAML block.
    pub(super) fn is_in_yaml(&self, indent: usize) -> bool {
        matches!(self.yaml, Yaml::In { indent: own } if indent >= own)
    }

    /// Why its tests were given up, if they were.
    pub(super) fn bailed_out(&self) -> Option<&str> {
        self.bailed_out.as_deref()
    }

    /// Whether it is one: there was a version line, or both a plan and results, or a plan that says why there
    /// are none, or its tests were given up.
    pub(super) fn counts(&self) -> bool {
        let own = self.own();
        let is_skip = own.is_some_and(|own| own.skips_all() && !own.plan_comment().is_empty());
        let is_whole = own.is_some_and(|own| own.has_plan() && own.results > 0);
        self.version.is_some() || is_skip || is_whole || self.bailed_out.is_some()
    }

    /// Whether something has come that makes it one, or may.
    pub(super) fn has_something(&self) -> bool {
        self.version.is_some() || self.own().is_some_and(|own| !own.is_new())
    }

    /// Whether all has come that it announced.
    pub(super) fn is_complete(&self) -> bool {
        let own = self.own();
        let has_enough = own
            .is_some_and(|own| own.is_fulfilled() || (self.is_ktap() && !own.has_plan() && own.results > 0));
        has_enough && self.levels.len() == 1
    }

    /// Whether it has a plan, and every result of it has come.
    pub(super) fn is_fulfilled(&self) -> bool {
        self.levels.len() == 1 && self.own().is_some_and(Level::is_fulfilled)
    }

    /// Whether this line, not indented, is the first of another document without a version: a plan where
    /// there is one, or a result of number 1 after all that was planned, or where there is no plan and this
    /// number has come.
    pub(super) fn is_followed_by(&self, line: &Line) -> bool {
        let Some(own) = self.own() else { return false };
        match line {
            Line::Plan { .. } => own.has_plan(),
            Line::Result(point) if point.number == Some(1) => {
                own.numbers.has(1) && if own.has_plan() { own.is_fulfilled() } else { self.version.is_none() }
            }
            _ => false,
        }
    }

    /// A bare `ok` after the last of numbered results: `prove -v` says so of a whole file.
    pub(super) fn is_sum_of_prove(&self, indent: usize, line: &Line) -> bool {
        let is_bare = matches!(line, Line::Result(TestPoint { is_ok: true, number: None, name, directive: None, .. })
            if name.is_empty());
        is_bare && indent == 0 && self.is_numbered && self.is_complete()
    }

    /// What is to be said of one that does not count: failures without a plan, or a plan without results.
    pub(super) fn remark(&self) -> Option<String> {
        let own = self.own()?;
        match own.first_failure() {
            Some(failure) => Some(format!("`not ok` of {failure} came without a plan")),
            None => own.unmet_plan().map(|count| format!("the plan 1..{count} came without results")),
        }
    }

    /// Ends it.
    pub(super) fn close(mut self, budget: &mut Budget) -> Tally {
        let is_ktap = self.is_ktap();
        let unfinished = self.close_deeper(1);
        let Some(mut own) = self.levels.pop() else { return Tally::default() };
        if let Some(subtest) = unfinished {
            own.take_unfinished(subtest, is_ktap);
        }
        let reason = own.plan_comment().to_owned();
        let (mut tally, skips_all) = own.close(is_ktap);
        // A kernel with KUnit and without tests says `1..0`, and skips nothing.
        if skips_all && !(is_ktap && reason.is_empty()) {
            let name = "1..0".to_owned();
            let result = TapResult { name, outcome: TapOutcome::Skipped, reason, ..TapResult::default() };
            tally.add(result, "1..0", budget);
        }
        if self.is_too_deep {
            tally.fault(format!("subtests are nested more than {DEEPEST} deep"));
        }
        tally
    }

    fn is_ktap(&self) -> bool {
        self.version == Some(Dialect::Ktap)
    }

    /// The level of the document itself.
    fn own(&self) -> Option<&Level> {
        self.levels.first()
    }

    fn result(&mut self, indent: usize, point: TestPoint, budget: &mut Budget) -> bool {
        let is_ktap = self.is_ktap();
        let before = self.before.take();
        let subtest = self.close_deeper(indent + 1);
        if !self.has_level(indent) {
            // The comment before a test without subtests names that test, and not the subtest that it is in.
            self.announced.retain(|(at, name)| *at != indent || name.as_ref() != Some(&point.name));
        }
        if !self.enter(indent) {
            return false;
        }
        self.announced.retain(|(at, _)| *at < indent);
        self.is_numbered |= indent == 0 && point.number.is_some();
        if let Some(level) = self.levels.last_mut() {
            level.take(point, before, subtest, is_ktap, budget);
        }
        self.yaml = Yaml::May { result: indent };
        true
    }

    fn plan(&mut self, indent: usize, count: u64, comment: String) -> bool {
        self.end_notes();
        if !self.enter(indent) {
            return false;
        }
        if let Some(level) = self.levels.iter_mut().find(|level| level.indent == indent) {
            level.take_plan(count, comment);
        }
        true
    }

    /// A subtest with a version line of its own, as KTAP has them.
    fn open(&mut self, indent: usize) -> bool {
        self.end_notes();
        let is_ktap = self.is_ktap();
        if let Some(unfinished) = self.close_deeper(indent)
            && let Some(level) = self.levels.last_mut()
        {
            level.take_unfinished(unfinished, is_ktap);
        }
        if !self.enter(indent) {
            return false;
        }
        if let Some(level) = self.levels.last_mut() {
            level.start = Start::Announced;
        }
        true
    }

    /// The comment stands before a subtest, as in TAP 14, or is one of its first lines, as KUnit writes it.
    fn announce(&mut self, indent: usize, name: Option<String>) -> bool {
        self.end_notes();
        match self.levels.last_mut() {
            Some(level) if level.indent == indent && indent > 0 && level.is_new() && level.name.is_none() => {
                level.name = name;
            }
            _ => {
                self.announced.retain(|(at, _)| *at < indent);
                if self.announced.len() < DEEPEST {
                    self.announced.push((indent, name));
                }
            }
        }
        true
    }

    /// Keeps a comment (TAP 14, "Comments") for the failure that it stands after or, in KTAP and after
    /// another line of TAP, for the one that it stands before. KUnit tells more in lines without a `#`, which
    /// are indented.
    fn note(&mut self, indent: usize, text: &str, line: &Line, budget: &mut Budget) {
        let is_more = *line == Line::Other && self.is_ktap() && indent > 0 && !self.before.is_empty();
        if *line != Line::Comment && !is_more {
            return;
        }
        let is_ktap = self.is_ktap();
        match self.levels.last_mut().filter(|level| level.has_open_failure() && !is_ktap) {
            Some(level) => level.diagnose(&diagnostics::line(0, text), budget),
            None => self.before.push(diagnostics::line(if is_more { indent } else { 0 }, text)),
        }
    }

    /// Keeps a line within a YAML block for the failure that the block belongs to. Blank lines mean something
    /// there (TAP 14, "Blank Lines").
    fn note_yaml(&mut self, indent: usize, text: &str, line: &Line, budget: &mut Budget) {
        let Yaml::In { indent: own } = self.yaml else { return };
        let is_mark = *line == Line::YamlStart && indent == own;
        if let Some(level) = self.levels.last_mut().filter(|_| !is_mark) {
            level.diagnose(&diagnostics::line(indent.saturating_sub(own), text), budget);
        }
    }

    /// A line of TAP that is not a result: comments before it say nothing of one after it.
    fn end_notes(&mut self) {
        self.before = Before::default();
        self.levels.iter_mut().for_each(Level::end_diagnostics);
    }

    fn has_level(&self, indent: usize) -> bool {
        self.levels.iter().any(|level| level.indent == indent)
    }

    /// Makes a level of this indentation, if there is none, and those around it that comments announced:
    /// false if it were too deep. Deeper ones that are open become its subtests.
    fn enter(&mut self, indent: usize) -> bool {
        loop {
            let depth = self.levels.iter().rposition(|level| level.indent <= indent).unwrap_or(0);
            let around = self.levels.get(depth).map_or(0, |level| level.indent);
            if around >= indent {
                return true;
            }
            if self.levels.len() >= DEEPEST {
                self.is_too_deep = true;
                return false;
            }
            let next = self.announced.iter().map(|(at, _)| *at).find(|at| (around + 1..indent).contains(at));
            let level = self.announced_level(next.unwrap_or(indent), around);
            self.levels.insert(depth + 1, level);
        }
    }

    /// A new level, named by the comment before it, as in TAP 14, or by one of the same indentation, as in
    /// KUnit.
    fn announced_level(&mut self, indent: usize, around: usize) -> Level {
        let before = self.announced.iter().position(|(at, _)| *at == around);
        match before.or_else(|| self.announced.iter().position(|(at, _)| *at == indent)) {
            Some(index) => Level::new(indent, Start::Announced, self.announced.remove(index).1),
            None => Level::new(indent, Start::Bare, None),
        }
    }

    /// Takes out the levels that are indented by this much or more: the outermost of them, with what the
    /// others came to.
    fn close_deeper(&mut self, indent: usize) -> Option<Level> {
        let is_ktap = self.is_ktap();
        let mut subtest: Option<Level> = None;
        while self.levels.len() > 1 && self.levels.last().is_some_and(|level| level.indent >= indent) {
            let Some(mut level) = self.levels.pop() else { break };
            if let Some(inner) = subtest.take() {
                level.take_unfinished(inner, is_ktap);
            }
            subtest = Some(level);
        }
        subtest
    }

    /// Whether a line is part of a YAML block: from an indented `---` after a result to a `...` of the same
    /// indentation. What others write between its lines does not end it; a line of TAP that is not indented
    /// as much does.
    fn is_yaml(&mut self, indent: usize, text: &str, line: &Line) -> bool {
        let is_other = matches!(line, Line::Comment | Line::Other | Line::YamlStart);
        match self.yaml {
            Yaml::In { indent: own } if indent >= own || text.is_empty() => {
                if indent == own && text.trim_end() == "..." {
                    self.yaml = Yaml::No;
                }
                true
            }
            Yaml::May { result } if *line == Line::YamlStart && indent > result => {
                self.yaml = Yaml::In { indent };
                true
            }
            _ => {
                if !is_other {
                    self.yaml = Yaml::No;
                }
                false
            }
        }
    }
}

/// More than any harness nests.
const DEEPEST: usize = 32;
