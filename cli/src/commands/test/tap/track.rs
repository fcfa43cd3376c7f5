//! The documents of one text, one after the other: where each begins and ends.

use super::document::{Dialect, Document};
use super::line::{Line, TestPoint, Version, indentation, version_at};
use super::prefix::Prefix;
use super::sum::Sum;

/// A text, at its current document.
#[derive(Debug)]
pub(super) struct Track {
    current: Option<Open>,
    /// Whether documents without a version line are accepted. A kernel's log has none, and much that looks
    /// like one.
    may_lack_version: bool,
}

#[derive(Debug)]
struct Open {
    document: Document,
    prefix: Prefix,
    /// Whether each line has the prefix; unknown before the first line after the version line.
    is_prefixed: Option<bool>,
    /// True if a document whose plan was fulfilled ended right before this one.
    follows: bool,
}

impl Track {
    pub(super) fn new(may_lack_version: bool) -> Track {
        Track { current: None, may_lack_version }
    }

    /// Takes a line, and returns whether it is part of a document.
    pub(super) fn feed(&mut self, text: &str, sum: &mut Sum) -> bool {
        let Some(open) = &mut self.current else {
            return self.try_open(text, Prefix::default(), false, sum);
        };
        let cut = open.prefix.cut(text).filter(|_| open.is_prefixed != Some(false));
        let own = cut.unwrap_or(text);
        let (indent, body) = indentation(own);
        let line = match (Line::of(body), open.is_prefixed) {
            // A line without the prefix comes from another program, unless it begins a document.
            (line, Some(true)) if cut.is_none() && !matches!(line, Line::Version { .. }) => Line::Other,
            (line, _) => line,
        };
        let is_another = match &line {
            Line::Version { .. } => indent == 0,
            Line::Other => version_at(body).is_some() && !open.document.is_in_yaml(indent),
            _ => indent == 0 && self.may_lack_version && open.document.is_followed_by(&line),
        };
        if is_another {
            let prefix = open.prefix.clone();
            let follows = open.document.counts() && open.document.is_complete();
            self.close(sum);
            return self.try_open(text, prefix, follows, sum);
        }
        if open.document.is_sum_of_prove(indent, &line) {
            return false;
        }
        let is_part = open.document.feed(indent, body, line, &mut sum.budget);
        if is_part {
            open.is_prefixed.get_or_insert(cut.is_some());
        }
        if let Some(reason) = open.document.bailed_out() {
            sum.bail_out(reason);
        }
        is_part
    }

    /// Ends the open document.
    pub(super) fn close(&mut self, sum: &mut Sum) {
        let Some(Open { document, follows, .. }) = self.current.take() else { return };
        if document.counts() {
            sum.add(document);
        } else if document.has_something() {
            sum.leave_out(&document, follows);
        }
    }

    /// Returns the open document.
    pub(super) fn document(&self) -> Option<&Document> {
        self.current.as_ref().map(|open| &open.document)
    }

    /// Begins a document if this line is the first of one: a version line with any prefix or, without
    /// indentation, a plan, a result with number 1, or the announcement of a subtest.
    fn try_open(&mut self, text: &str, prefix: Prefix, follows: bool, sum: &mut Sum) -> bool {
        let own = prefix.cut(text).unwrap_or(text);
        let (indent, body) = indentation(own);
        let line = Line::of(body);
        let starts_result = matches!(
            line,
            Line::Plan { .. } | Line::Subtest { .. } | Line::Result(TestPoint { number: Some(1), .. })
        );
        if starts_result && indent == 0 && self.may_lack_version {
            let mut document = Document::new(None);
            let is_part = document.feed(0, body, line, &mut sum.budget);
            self.current = Some(Open { document, prefix, is_prefixed: None, follows });
            return is_part;
        }
        if !matches!(line, Line::Version { .. } | Line::Other) {
            return false;
        }
        let Some(Version { start, is_ktap }) = version_at(text) else { return false };
        let Some(prefix) = text.get(..start).and_then(Prefix::new) else { return false };
        let dialect = if is_ktap { Dialect::Ktap } else { Dialect::Tap };
        let document = Document::new(Some(dialect));
        self.current = Some(Open { document, prefix, is_prefixed: None, follows: false });
        true
    }
}
