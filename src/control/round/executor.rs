//! What another executor of the same plan must be given, and what its decisions are held against.
#![forbid(unsafe_code)]

use super::DraftRound;
use crate::control::cost::CostTables;
use crate::control::plan::Plan;
use crate::control::scan::Candidate;

#[cfg(feature = "engine")]
impl DraftRound {
    pub(crate) fn gains(&self) -> &crate::control::gain::GainTable {
        &self.gains
    }

    pub(crate) fn calibration(
        &self,
        sequence: &super::RoundSequence,
    ) -> &crate::control::acceptance::Calibration {
        &self.calibrations[usize::from(sequence.sampled)]
    }

    pub(crate) fn sequences(&self) -> &[super::RoundSequence] {
        &self.sequences
    }

    /// Most rows of a pass whose width is scanned.
    pub(crate) fn max_rows(&self) -> usize {
        self.max_rows
    }
}

impl DraftRound {
    /// The drafted nodes that could be verified, by path probability (selection rule `Scan`).
    #[doc(hidden)]
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// Starts the round again as if the controller had chosen this plan and measured these costs of its batch: for tests of
    /// executors at costs that no machine has.
    ///
    /// # Panics
    /// If the tables are of another number of sequences.
    #[doc(hidden)]
    pub fn restart(&mut self, plan: Plan, tables: CostTables) {
        assert_eq!(tables.batch(), self.sequences.len(), "one context a sequence");
        self.tables = tables;
        self.begin(plan, self.max_rows);
    }

    /// The costs of the round's batch.
    #[doc(hidden)]
    pub fn costs(&self) -> &CostTables {
        &self.tables
    }
}
