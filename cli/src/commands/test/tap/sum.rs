//! The total over all documents of a run.

use super::document::Document;
use super::tally::{Budget, Tally};

/// The results of all documents that have ended.
#[derive(Debug, Default)]
pub(super) struct Sum {
    pub(super) tally: Tally,
    pub(super) documents: u64,
    pub(super) budget: Budget,
    pub(super) bailed_out: Option<String>,
    /// Describes results that came but do not count.
    pub(super) left_out: Option<String>,
    /// True if results came without a plan and a version line.
    pub(super) has_no_plan: bool,
    /// Faults of documents other than failures, with the documents' numbers.
    faults: Vec<(u64, String)>,
    more_faults: u64,
}

impl Sum {
    /// Adds a document that counts.
    pub(super) fn add(&mut self, document: Document) {
        self.documents = self.documents.saturating_add(1);
        let mut tally = document.close(&mut self.budget);
        for result in &mut tally.results {
            result.document = self.documents;
        }
        self.more_faults = self.more_faults.saturating_add(tally.more_faults);
        for fault in std::mem::take(&mut tally.faults) {
            self.fault(fault);
        }
        self.tally.merge(tally, "");
    }

    /// Records a document that does not count. Right after a document whose plan was fulfilled, it is a
    /// surplus of that one.
    pub(super) fn leave_out(&mut self, document: &Document, follows: bool) {
        if follows {
            self.fault("more came than was planned".to_owned());
            return;
        }
        let remark = document.remark();
        self.has_no_plan |= remark.is_none();
        self.left_out = self.left_out.take().or(remark);
    }

    pub(super) fn bail_out(&mut self, reason: &str) {
        self.bailed_out.get_or_insert_with(|| reason.to_owned());
    }

    /// Describes what is wrong, if anything is.
    pub(super) fn complaint(&self) -> Option<String> {
        if let Some(reason) = &self.bailed_out {
            return Some(format!("TAP: bailed out: {reason}"));
        }
        let mut parts = Vec::new();
        let Tally { passed, failed, failures, .. } = &self.tally;
        if *failed > 0 {
            let more = failed.saturating_sub(failures.len() as u64);
            let more = if more > 0 { format!(", and {more} more") } else { String::new() };
            parts.push(format!(
                "{failed} of {} failed: {}{more}",
                passed.saturating_add(*failed),
                failures.join(", ")
            ));
        }
        parts.extend(self.faults.iter().map(|(document, fault)| match self.documents {
            1 => fault.clone(),
            _ => format!("document {document}: {fault}"),
        }));
        if self.more_faults > 0 {
            parts.push(format!("and {} more", self.more_faults));
        }
        (!parts.is_empty()).then(|| format!("TAP: {}", parts.join("; ")))
    }

    fn fault(&mut self, fault: String) {
        if self.faults.len() < FAULTS {
            self.faults.push((self.documents, fault));
        } else {
            self.more_faults = self.more_faults.saturating_add(1);
        }
    }
}

const FAULTS: usize = 4;
