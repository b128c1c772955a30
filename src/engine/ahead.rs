//! Plain rounds that the device runs ahead of the host: while the host hands out the tokens of one, the next is under way.
//!
//! A plain round needs nothing of the host but the token that was drawn, and that is on the device: `advance_rows` makes its pass the one
//! behind it. So the next round is issued before the results of the present one have been read, as long as nothing can come between: no
//! request waits, no prompt is being read, every text goes on for another token whatever is drawn, and nothing has to be known of that token first
//! (a grammar, penalties, log-probabilities, a trace). A text that ends with its present token all the same takes part in one round too many,
//! whose draw is not looked at: its keys and values lie behind all that was ever committed. A round that has been issued may be forgotten
//! at any time; it is then run again, to the same bits.

use crate::control::Policy;
use crate::device::{Device, Event};
use crate::engine::errand::Errand;
use crate::engine::proposer::Proposer;
use crate::engine::sequence::SequenceId;
use crate::engine::{Emission, Engine};
use crate::error::{Error, Result};
use crate::model::Taps;
use crate::switch::switch;
use crate::tree::DraftTree;

/// Positions for which a text has pages beforehand: so often a round has to wait for the host, which gives it more.
pub(super) const POSITIONS_AHEAD: usize = 16;

/// What the device does while the host is busy.
pub(super) struct Ahead {
    /// Whether rounds are run ahead.
    wanted: bool,
    /// Ends of rounds in turn: of the one before the present one, of that, and of the one behind it.
    ends: [Event; 3],
    /// The round that is under way between two steps.
    issued: Option<Issued>,
}

/// A plain round that was issued.
struct Issued {
    /// Slots of its pass and whose rows they are.
    rows: Vec<(usize, SequenceId)>,
    /// Where its results are.
    turn: usize,
    /// Which event is its end.
    end: usize,
    /// Whether the device waited for the host within its pass.
    waited: bool,
}

impl Ahead {
    pub fn new(device: &Device, wanted: bool) -> Result<Self> {
        Ok(Self {
            wanted,
            ends: [Event::new(device)?, Event::new(device)?, Event::new(device)?],
            issued: None,
        })
    }

    /// Whether rounds are run ahead where they can be.
    pub fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// Forgets the round that is under way.
    pub fn forget(&mut self) {
        self.issued = None;
    }
}

/// Whether rounds are run ahead if nobody says: on a GPU. The host driver computes as it is asked to, so a round too many costs and none is
/// sooner. `SMART_AHEAD` = 0 or 1 says otherwise, for comparison.
///
/// # Errors
/// The variable says something else.
pub(super) fn is_usual(device: &Device) -> Result<bool> {
    Ok(switch("SMART_AHEAD")?.unwrap_or(!device.is_host()))
}

impl Engine {
    /// Ends the round that is under way, if there is one and anybody still runs who takes part in it.
    pub(super) fn settle_issued(&mut self, errand: &mut Errand) -> Option<Result<Vec<Emission>>> {
        let issued = self.ahead.issued.take()?;
        self.takes_part(&issued).then(|| self.settle(issued, false, errand))
    }

    /// Whether a plain round of `slots` can be followed by another before its results are read. Under `smart` one that was decided, as a
    /// controller that rests is to see every other round whether it should go on.
    pub(super) fn may_run_ahead(&self, slots: &[usize], was_decided: bool) -> bool {
        let rests = match self.controller.policy() {
            Policy::Plain => true,
            // The state that heads read is one, not one of a position: it must not be of a round that is forgotten.
            Policy::Smart => was_decided && !matches!(self.proposer, Some(Proposer::Heads(_))),
            _ => false,
        };
        let alone = rests
            && self.queue.is_empty()
            && self.pending.is_empty()
            && self.trace.is_none()
            && self.recording.is_none();
        self.ahead.wanted
            && alone
            && slots == self.running_slots()
            && slots.iter().all(|&slot| self.goes_on(slot))
    }

    /// Whether the text in `slot` goes on behind its next token, whatever that is, unless it ends a text.
    fn goes_on(&self, slot: usize) -> bool {
        let sequence = self.sequence(slot);
        let request = &sequence.request;
        let emitted = sequence.emitted().len();
        sequence.unread.is_none()
            && sequence.finished.is_none()
            && sequence.guided.is_none()
            && request.logprobs.is_none()
            && emitted >= request.min_new_tokens
            && emitted + 2 <= request.max_new_tokens
            && !self.verifier.penalties.changes(slot)
            // The root, and the token behind it that becomes the next.
            && self.pool.reserved(slot) >= sequence.root() + 2
    }

    /// Issues the plain round of `slots`, and the one behind it, and ends the first.
    pub(super) fn run_ahead(&mut self, slots: &[usize], errand: &mut Errand) -> Result<Vec<Emission>> {
        let trees = self.roots(slots);
        self.fill_pass(slots, &trees, &[]);
        self.run_target(slots, &trees)?;
        self.verifier.walk(0)?;
        self.times.mark_verify()?;
        let rows: Vec<_> = slots.iter().map(|&slot| (slot, self.sequence(slot).id)).collect();
        self.keep_features(&rows, 0)?;
        let issued = self.issued(rows, 0, false)?;
        self.settle(issued, true, errand)
    }

    /// Keeps the features of a pass of roots for the drafter, if there is one that reads them, before another pass takes their place; it is
    /// `ahead` positions behind what is committed.
    fn keep_features(&mut self, rows: &[(usize, SequenceId)], ahead: usize) -> Result<()> {
        if !self.feeds_drafter() {
            return Ok(());
        }
        let row = |&(slot, _): &(usize, SequenceId)| {
            (slot, self.sequence(slot).root() + ahead, self.verifier.pass.first_row(slot))
        };
        let features: Vec<_> = rows.iter().map(row).collect();
        self.proposer.as_mut().map_or(Ok(()), |proposer| proposer.remember(&features))
    }

    /// Marks the end of a round whose walk has been issued, and starts to read it.
    fn issued(&mut self, rows: Vec<(usize, SequenceId)>, end: usize, waited: bool) -> Result<Issued> {
        self.ahead.ends[end].record()?;
        let turn = self.verifier.start_reading()?;
        Ok(Issued { rows, turn, end, waited })
    }

    /// Issues the round behind `present`.
    fn issue_next(&mut self, present: &Issued) -> Result<Issued> {
        let width = self.verifier.pass.width();
        let proposer = self.proposer.as_ref().filter(|_| self.feeds_drafter());
        let taps = proposer.and_then(|proposer| proposer.taps(width));
        let taps = taps.as_ref().map(|(out, layers)| Taps { layers, out });
        let (logits, waited) = self.verifier.forward_again(taps)?;
        self.verifier.draw(&logits)?;
        self.verifier.walk(0)?;
        self.keep_features(&present.rows, 1)?;
        self.issued(present.rows.clone(), (present.end + 1) % 3, waited)
    }

    /// Ends `present`, the `first` of its chain or not, once the one behind it has been issued, if it may be.
    fn settle(&mut self, present: Issued, is_first: bool, errand: &mut Errand) -> Result<Vec<Emission>> {
        let all: Vec<usize> = present.rows.iter().map(|&(slot, _)| slot).collect();
        let goes_on = present.rows.iter().all(|&(slot, id)| self.is_running(slot, id))
            && self.may_run_ahead(&all, is_first);
        let next = if goes_on { Some(self.issue_next(&present)?) } else { None };
        self.do_meanwhile(errand);
        let mut outcomes = self.verifier.read_turn(present.turn)?;
        if is_first {
            self.times.collect()?;
        } else {
            let [earlier, end] = [present.end + 2, present.end].map(|end| &self.ahead.ends[end % 3]);
            // Results may be seen a moment before an event that was issued in front of them.
            end.wait()?;
            let us = end.micros_since(earlier)?;
            let us = us.ok_or_else(|| Error::Device("a round that was waited for has no time".into()))?;
            self.times.collect_ahead(us, present.waited);
        }
        let alive = present.rows.iter().filter(|&&(slot, id)| self.is_running(slot, id));
        let slots: Vec<usize> = alive.map(|&(slot, _)| slot).collect();
        if !is_first {
            self.controller.begin_plain_round(&self.views(&slots));
        }
        let trees: Vec<DraftTree> = self.roots(&slots);
        let verified: Vec<_> = slots.iter().map(|&slot| std::mem::take(&mut outcomes[slot])).collect();
        // Its features were kept when it was issued.
        let emissions = self.conclude((&slots, &trees), verified, (&[], &[]), false)?;
        if let Some(next) = next.filter(|next| self.takes_part(next)) {
            self.ahead.issued = Some(next);
            // The device was not waiting for what the host did meanwhile.
            self.times.forget_tail();
        }
        Ok(emissions)
    }

    /// The trees of a plain round.
    pub(super) fn roots(&self, slots: &[usize]) -> Vec<DraftTree> {
        slots.iter().map(|&slot| DraftTree::new(self.sequence(slot).root_token())).collect()
    }

    fn takes_part(&self, issued: &Issued) -> bool {
        issued.rows.iter().any(|&(slot, id)| self.is_running(slot, id))
    }

    fn is_running(&self, slot: usize, id: SequenceId) -> bool {
        self.sequences[slot].as_ref().is_some_and(|sequence| sequence.id == id && sequence.finished.is_none())
    }
}
