//! A document, parsed line by line: its levels, its plan, and the YAML blocks in it.

use super::diagnostics::{self, Before};
use super::level::{Level, Start};
use super::line::{Line, TestPoint};
use super::tally::{Budget, Tally, TapOutcome, TapResult};

/// A document that has begun.
#[derive(Debug)]
pub(super) struct Document {
    /// `None` for a document without a version line.
    version: Option<Dialect>,
    /// The document itself, followed by its open subtests from outside in. Never empty.
    levels: Vec<Level>,
    /// Subtests that comments have announced and that have not begun: their indentation, which increases from
    /// one to the next, and their name.
    announced: Vec<(usize, Option<String>)>,
    yaml: Yaml,
    /// Lines that may explain the next failure.
    before: Before,
    bailed_out: Option<String>,
    /// True once a result that is not indented had a number.
    is_numbered: bool,
    is_too_deep: bool,
}

/// The rules that a document claims to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Tap,
    Ktap,
}

/// Whether a YAML block may begin here, or has begun.
#[derive(Debug, Clone, Copy)]
enum Yaml {
    No,
    /// A block may begin, after a result with this indentation.
    May {
        result: usize,
    },
    /// Inside a block, whose lines have at least this indentation.
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

    /// Takes a line with this indentation, and returns whether it is part of the document.
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
        // A line whose indentation is not that of a subtest is not a result (TAP 14, "Subtest Parsing"; KTAP,
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

    /// Returns whether a line with this indentation is part of a YAML block.
    pub(super) fn is_in_yaml(&self, indent: usize) -> bool {
        matches!(self.yaml, Yaml::In { indent: own } if indent >= own)
    }

    /// Returns why the tests were abandoned, if they were.
    pub(super) fn bailed_out(&self) -> Option<&str> {
        self.bailed_out.as_deref()
    }

    /// Returns whether this counts as a document: it has a version line, or both a plan and results, or a
    /// plan that explains why there are none, or its tests were abandoned.
    pub(super) fn counts(&self) -> bool {
        let own = self.own();
        let is_skip = own.is_some_and(|own| own.skips_all() && !own.plan_comment().is_empty());
        let is_whole = own.is_some_and(|own| own.has_plan() && own.results > 0);
        self.version.is_some() || is_skip || is_whole || self.bailed_out.is_some()
    }

    /// Returns whether a line has come that makes it a document, or may.
    pub(super) fn has_something(&self) -> bool {
        self.version.is_some() || self.own().is_some_and(|own| !own.is_new())
    }

    /// Returns whether everything that it announced has come.
    pub(super) fn is_complete(&self) -> bool {
        let own = self.own();
        let has_enough = own
            .is_some_and(|own| own.is_fulfilled() || (self.is_ktap() && !own.has_plan() && own.results > 0));
        has_enough && self.levels.len() == 1
    }

    /// Returns whether it has a plan, and every planned result has come.
    pub(super) fn is_fulfilled(&self) -> bool {
        self.levels.len() == 1 && self.own().is_some_and(Level::is_fulfilled)
    }

    /// Returns whether this line, which is not indented, begins another document without a version line. A
    /// plan does if this document has one. A result with number 1 does if all planned results have come, or
    /// if there is no plan and number 1 has come before.
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

    /// Returns whether this is a bare `ok` after the last of numbered results: `prove -v` prints one as the
    /// result of a whole file.
    pub(super) fn is_sum_of_prove(&self, indent: usize, line: &Line) -> bool {
        let is_bare = matches!(line, Line::Result(TestPoint { is_ok: true, number: None, name, directive: None, .. })
            if name.is_empty());
        is_bare && indent == 0 && self.is_numbered && self.is_complete()
    }

    /// Describes why a document does not count although it looks like one: failures without a plan, or a plan
    /// without results.
    pub(super) fn remark(&self) -> Option<String> {
        let own = self.own()?;
        match own.first_failure() {
            Some(failure) => Some(format!("`not ok` of {failure} came without a plan")),
            None => own.unmet_plan().map(|count| format!("the plan 1..{count} came without results")),
        }
    }

    /// Ends the document and returns its results.
    pub(super) fn close(mut self, budget: &mut Budget) -> Tally {
        let is_ktap = self.is_ktap();
        let unfinished = self.close_deeper(1);
        let Some(mut own) = self.levels.pop() else { return Tally::default() };
        if let Some(subtest) = unfinished {
            own.take_unfinished(subtest, is_ktap);
        }
        let reason = own.plan_comment().to_owned();
        let (mut tally, skips_all) = own.close(is_ktap);
        // A kernel with KUnit but without tests prints `1..0`, and skips nothing.
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

    /// Returns the level of the document itself.
    fn own(&self) -> Option<&Level> {
        self.levels.first()
    }

    fn result(&mut self, indent: usize, point: TestPoint, budget: &mut Budget) -> bool {
        let is_ktap = self.is_ktap();
        let before = self.before.take();
        let subtest = self.close_deeper(indent + 1);
        if !self.has_level(indent) {
            // A comment before a test without subtests names that test, and does not announce a subtest.
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

    /// Begins a subtest with a version line of its own, as in KTAP.
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

    /// Handles a comment that names a subtest. It comes before the subtest, as in TAP 14, or is one of its
    /// first lines, as in KUnit.
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

    /// Keeps a comment (TAP 14, "Comments") for a failure: the one that it follows or, in KTAP and after
    /// another line of TAP, the one that it precedes. KUnit adds indented lines without a `#`.
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

    /// Keeps a line of a YAML block for the failure to which the block belongs. Blank lines are significant
    /// there (TAP 14, "Blank Lines").
    fn note_yaml(&mut self, indent: usize, text: &str, line: &Line, budget: &mut Budget) {
        let Yaml::In { indent: own } = self.yaml else { return };
        let is_mark = *line == Line::YamlStart && indent == own;
        if let Some(level) = self.levels.last_mut().filter(|_| !is_mark) {
            level.diagnose(&diagnostics::line(indent.saturating_sub(own), text), budget);
        }
    }

    /// Handles a line of TAP that is not a result: the comments before it do not explain a result after it.
    fn end_notes(&mut self) {
        self.before = Before::default();
        self.levels.iter_mut().for_each(Level::end_diagnostics);
    }

    fn has_level(&self, indent: usize) -> bool {
        self.levels.iter().any(|level| level.indent == indent)
    }

    /// Opens a level with this indentation, if there is none, together with the announced levels around it.
    /// Returns `false` if it would be too deep. Deeper levels that are open become its subtests.
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

    /// Creates a level. Its name comes from the comment before it, as in TAP 14, or from a comment with the
    /// same indentation, as in KUnit.
    fn announced_level(&mut self, indent: usize, around: usize) -> Level {
        let before = self.announced.iter().position(|(at, _)| *at == around);
        match before.or_else(|| self.announced.iter().position(|(at, _)| *at == indent)) {
            Some(index) => Level::new(indent, Start::Announced, self.announced.remove(index).1),
            None => Level::new(indent, Start::Bare, None),
        }
    }

    /// Closes the levels with at least this indentation. Returns the outermost of them, with the results of
    /// the others in it.
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

    /// Returns whether a line is part of a YAML block: from an indented `---` after a result to a `...` with
    /// the same indentation. Output of others between its lines does not end the block; a line of TAP with
    /// less indentation does.
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

/// The maximum nesting of subtests: deeper than any harness nests.
const DEEPEST: usize = 32;
