//! Who runs: requests wait in line, are admitted when there are pages for them, and give their pages up when those who came before need
//! them. All of it between rounds, and none of it shows in a text.

use std::ops::Range;

use crate::engine::ahead::POSITIONS_AHEAD;
use crate::engine::pictures::{Pictures, position_keys};
use crate::engine::request::Request;
use crate::engine::sequence::{Sequence, SequenceId};
use crate::engine::{Emission, Engine, Failure, FinishReason};
use crate::error::Result;
use crate::kv_cache::PAGE_SIZE;
use crate::model::MAX_ROWS_PER_SEQUENCE;
use crate::pages::{CacheEvent, CacheLayout, PageCounts};

/// A part of a text that is read in one pass.
pub(super) struct Chunk {
    pub slot: usize,
    pub positions: Range<usize>,
    /// The text ends here: its next token is drawn.
    pub is_last: bool,
}

impl Engine {
    /// Accepts a request, which waits until there is room for it. [`Engine::step`] does the rest.
    ///
    /// # Errors
    /// [`Error::Input`](crate::Error::Input) for a request that can never be served: empty prompt, token outside the vocabulary, longer
    /// than the context, parameters out of range.
    pub fn submit(&mut self, request: Request) -> Result<SequenceId> {
        let request = self.limits.check(request)?;
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let mut eos = if request.ignore_eos { vec![] } else { self.model_config().eos_token_ids.clone() };
        eos.extend_from_slice(&request.stop_tokens);
        let keys = position_keys(self.model_config(), &request.prompt, &request.pictures, &self.key_hasher);
        self.queue.push_back(Sequence::new(id, request, keys, eos));
        Ok(id)
    }

    /// Pages of keys and values.
    pub fn page_counts(&self) -> PageCounts {
        self.pool.counts()
    }

    /// How the prefix cache cuts texts into blocks.
    pub fn cache_layout(&self) -> CacheLayout {
        self.pool.cache_layout()
    }

    /// All blocks that the prefix cache holds now, as if they were stored anew, parents first.
    pub fn cached_blocks(&self) -> Vec<CacheEvent> {
        self.pool.cached_blocks()
    }

    /// Begins or ends to keep what happens in the prefix cache for [`Engine::take_cache_events`]. Who begins has to take, or it piles up.
    pub fn record_cache_events(&mut self, wanted: bool) {
        self.pool.record_cache_events(wanted);
    }

    /// What has happened in the prefix cache since it was asked for last, in order.
    pub fn take_cache_events(&mut self) -> Vec<CacheEvent> {
        self.pool.take_cache_events()
    }

    /// Starts all running sequences anew, from what they have emitted so far: after a round that failed. What is cached of other texts is
    /// forgotten, too, as nobody knows what the device still holds.
    pub fn restart_running(&mut self) {
        self.ahead.forget();
        for slot in self.running_slots() {
            self.put_back(slot);
        }
        self.pool.clear_cache();
    }

    /// Positions beyond what is committed that a round may use.
    fn headroom(&self) -> usize {
        if self.proposer.is_some() { MAX_ROWS_PER_SEQUENCE } else { 1 }
    }

    /// Gives waiting requests places, in order, as far as places and pages go. One whose prompt begins as that of a running one, which is
    /// being read, waits for those pages; others may pass it meanwhile.
    ///
    /// # Errors
    /// A driver failure; whom it was met with is still in line.
    pub(super) fn admit(&mut self) -> Result<()> {
        let mut next = 0;
        while let Some(sequence) = self.queue.get(next)
            && let Some(slot) = self.sequences.iter().position(Option::is_none)
        {
            let limit = sequence.committed.len() - 1;
            let (known, idle) = self.pool.cached_prefix(&sequence.keys, limit);
            if self.is_being_read(sequence, known) {
                next += 1;
                continue;
            }
            let needed = (sequence.committed.len() + self.headroom()).div_ceil(PAGE_SIZE);
            if needed - known / PAGE_SIZE > self.pool.available() - idle {
                break;
            }
            if let Some(sequence) = self.queue.remove(next) {
                self.seat(slot, sequence)?;
            }
        }
        Ok(())
    }

    /// Whether [`Engine::admit`] may give a place to a request with pictures.
    pub(super) fn may_seat_pictures(&self) -> bool {
        self.sequences.iter().any(Option::is_none)
            && self.queue.iter().any(|sequence| !sequence.request.pictures.is_empty())
    }

    /// Whether a running sequence is about to bring more of the prefix of `sequence` than the `known` positions.
    fn is_being_read(&self, sequence: &Sequence, known: usize) -> bool {
        let limit = sequence.committed.len() - 1;
        let wanted = known + PAGE_SIZE;
        wanted <= limit
            && self.sequences.iter().flatten().any(|other| {
                other.unread.is_some()
                    && other.keys.len() > wanted
                    && other.keys[..=wanted] == sequence.keys[..=wanted]
            })
    }

    /// Gives a waiting sequence a slot. One whose pictures cannot be encoded (there is no memory for them, say) fails alone, but for a device that
    /// does nothing more for anybody.
    fn seat(&mut self, slot: usize, mut sequence: Sequence) -> Result<()> {
        let limit = sequence.committed.len() - 1;
        let known = self.pool.attach(slot, &sequence.keys, limit);
        let prepared = self.prepare(slot, &sequence).and_then(|()| {
            let encoded = self.encode_pictures(&sequence, known);
            if encoded.is_err() {
                self.device.synchronize()?;
            }
            Ok(encoded)
        });
        match prepared {
            Ok(Ok(pictures)) => {
                sequence.pictures = pictures;
                sequence.unread = Some(known);
                sequence.draft_len = known;
                if sequence.emitted().is_empty() {
                    sequence.stats.cached_tokens = known;
                }
                self.sequences[slot] = Some(sequence);
                Ok(())
            }
            Err(error) => {
                self.pool.release(slot);
                self.wait_again(sequence);
                Err(error)
            }
            Ok(Err(error)) => {
                self.pool.release(slot);
                self.pending.push(Emission {
                    sequence: sequence.id,
                    tokens: Vec::new(),
                    accepted: 0,
                    logprobs: Vec::new(),
                    stats: sequence.stats,
                    finished: Some(FinishReason::Failed),
                    failure: Some(Failure::Run(error.to_string())),
                });
                Ok(())
            }
        }
    }

    /// All that a sequence needs before its first pass, but for pictures.
    fn prepare(&mut self, slot: usize, sequence: &Sequence) -> Result<()> {
        // What the latest round has left to copy comes from buffers that are filled anew here.
        self.device.synchronize()?;
        self.pool.reserve(slot, sequence.committed.len() + self.headroom())?;
        self.verifier.set_sampling(slot, sequence)
    }

    fn encode_pictures(&self, sequence: &Sequence, known: usize) -> Result<Pictures> {
        let Request { prompt, pictures, .. } = &sequence.request;
        Pictures::encode(self.verifier.target.config(), self.vision.as_ref(), prompt, pictures, known)
    }

    /// Makes sure that every running sequence has the pages of the coming round; the youngest give theirs up for the older.
    pub(super) fn make_room(&mut self) -> Result<()> {
        let headroom = self.headroom();
        let mut slots = self.running_slots();
        slots.sort_by_key(|&slot| self.sequence(slot).id);
        let mut at = 0;
        while at < slots.len() {
            let slot = slots[at];
            let len = self.sequence(slot).committed.len() + headroom;
            match self.pool.reserve(slot, len) {
                Ok(()) => at += 1,
                // The oldest always fits: `RequestLimits` has seen to that.
                Err(error) if at + 1 == slots.len() && at == 0 => return Err(error),
                Err(_) => self.preempt(slots.pop().unwrap_or(slot)),
            }
        }
        if self.ahead.is_wanted() {
            for slot in self.running_slots() {
                // Where there are none to spare rounds wait for the host, which makes room.
                let _ = self.pool.reserve(slot, self.sequence(slot).committed.len() + POSITIONS_AHEAD);
            }
        }
        self.pool.upload()
    }

    /// Takes a sequence's pages and puts it at the head of the line: what it has emitted is read again later, to the same bits.
    fn preempt(&mut self, slot: usize) {
        self.publish(slot);
        self.put_back(slot);
        self.preemptions += 1;
    }

    fn put_back(&mut self, slot: usize) {
        let Some(mut sequence) = self.sequences[slot].take() else { return };
        self.release(slot);
        if sequence.finished.is_some() {
            return;
        }
        sequence.restart();
        self.wait_again(sequence);
    }

    /// Puts a sequence where it was in line.
    fn wait_again(&mut self, sequence: Sequence) {
        let at = self.queue.partition_point(|waiting| waiting.id < sequence.id);
        self.queue.insert(at, sequence);
    }

    /// Lets others find the full pages of `slot`, as far as target and drafter have filled them.
    pub(super) fn publish(&mut self, slot: usize) {
        let drafts = self.feeds_drafter() && self.proposer.as_ref().is_some_and(|it| it.network().is_some());
        let Some(sequence) = &self.sequences[slot] else { return };
        let len = if drafts { sequence.kv_len().min(sequence.draft_len) } else { sequence.kv_len() };
        self.pool.publish(slot, &sequence.keys, len);
    }

    /// What to read in the coming pass: parts of texts that are not read yet, oldest first, at most `prefill_tokens` where others wait for
    /// their round.
    pub(super) fn plan_chunks(&self) -> Vec<Chunk> {
        let mut reading: Vec<usize> = Vec::new();
        let mut deciding = false;
        for slot in self.running_slots() {
            match self.sequence(slot).unread {
                Some(_) => reading.push(slot),
                None => deciding = true,
            }
        }
        reading.sort_by_key(|&slot| self.sequence(slot).id);
        let mut left = if deciding { self.prefill_tokens } else { usize::MAX };
        let mut chunks = Vec::new();
        for slot in reading {
            let sequence = self.sequence(slot);
            let (start, end) = (sequence.kv_len(), sequence.committed.len());
            let len = (end - start).min(MAX_ROWS_PER_SEQUENCE).min(left);
            if len == 0 {
                break;
            }
            left -= len;
            let positions = start..start + len;
            chunks.push(Chunk { slot, is_last: positions.end == end, positions });
        }
        chunks.sort_by_key(|chunk| chunk.slot);
        chunks
    }
}
