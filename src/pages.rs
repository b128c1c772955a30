//! [`PagePool`]: which page of the key/value caches holds which positions of which sequence.
//!
//! Target and drafter use the same page numbers: a page is 16 positions of both, so one table serves both caches. Pages that are full and
//! final can be *published*: from then on they are found again by the tokens that they hold ([`PrefixCache`]) and shared; nobody writes to
//! them. What nobody holds stays in the cache until the page is needed.
#![forbid(unsafe_code)]

mod events;
mod prefix_cache;

use std::ops::Range;

use crate::device::{DType, Device, PinnedBuffer, Tensor};
use crate::error::{Error, Result};
use crate::kv_cache::PAGE_SIZE;

pub use events::{CacheEvent, CacheLayout};

use prefix_cache::{BlockId, PrefixCache};

/// What a position of a text is known by in the prefix cache: its token, or what a picture shows there.
pub type PositionKey = i64;

/// Pages by what they hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageCounts {
    /// All pages.
    pub total: usize,
    /// Held by running sequences.
    pub used: usize,
    /// Held by nobody, but their keys and values may be wanted again.
    pub cached: usize,
}

/// Pages of one sequence slot.
#[derive(Default)]
struct Slot {
    /// In the order of positions; the first `blocks.len()` are shared.
    pages: Vec<i32>,
    blocks: Vec<BlockId>,
}

/// Pages, page tables and the prefix cache.
pub struct PagePool {
    /// `[max_sequences, max_pages]` on the device, as far as it has been uploaded; the same on the host, and the rows that differ.
    table: Tensor,
    rows: PinnedBuffer<i32>,
    changed: Option<Range<usize>>,
    slots: Vec<Slot>,
    free: Vec<i32>,
    num_pages: usize,
    cache: PrefixCache,
}

impl PagePool {
    /// `num_pages` pages for `max_sequences` slots of at most `max_positions` each. A page's keys and values depend on its tokens, those
    /// before them, and `lookahead` tokens behind: 1 where a drafter's page holds pairs of tokens.
    pub fn new(
        device: &Device,
        num_pages: usize,
        max_sequences: usize,
        max_positions: usize,
        lookahead: usize,
    ) -> Result<Self> {
        let max_pages = max_positions.div_ceil(PAGE_SIZE);
        let mut rows = PinnedBuffer::new(device, max_sequences * max_pages)?;
        rows.as_mut_slice().fill(0);
        Ok(Self {
            table: Tensor::zeros(device, DType::I32, &[max_sequences, max_pages])?,
            rows,
            changed: None,
            slots: (0..max_sequences).map(|_| Slot::default()).collect(),
            free: (0..num_pages as i32).rev().collect(),
            num_pages,
            cache: PrefixCache::new(PAGE_SIZE, lookahead),
        })
    }

    /// The page tables, for caches to find their pages by.
    pub fn table(&self) -> &Tensor {
        &self.table
    }

    /// Pages by what they hold.
    pub fn counts(&self) -> PageCounts {
        let cached = self.cache.num_idle();
        PageCounts { total: self.num_pages, used: self.num_pages - self.free.len() - cached, cached }
    }

    /// How the prefix cache cuts texts.
    pub fn cache_layout(&self) -> CacheLayout {
        CacheLayout { block_size: PAGE_SIZE, lookahead: self.cache.lookahead(), num_blocks: self.num_pages }
    }

    /// All blocks of the prefix cache, parents first.
    pub fn cached_blocks(&self) -> Vec<CacheEvent> {
        self.cache.stored()
    }

    /// Begins or ends to keep what happens in the prefix cache for [`PagePool::take_cache_events`].
    pub fn record_cache_events(&mut self, wanted: bool) {
        self.cache.record(wanted);
    }

    /// What has happened in the prefix cache since it was asked for last.
    pub fn take_cache_events(&mut self) -> Vec<CacheEvent> {
        self.cache.take_events()
    }

    /// Pages that a sequence could get.
    pub fn available(&self) -> usize {
        self.free.len() + self.cache.num_idle()
    }

    /// Makes positions `0..len` of `slot` usable; what the prefix cache holds makes room.
    ///
    /// # Errors
    /// Not enough pages are free, or `len` exceeds the page table; nothing changes then.
    pub fn reserve(&mut self, slot: usize, len: usize) -> Result<()> {
        let wanted = len.div_ceil(PAGE_SIZE);
        let have = self.slots[slot].pages.len();
        if wanted <= have {
            return Ok(());
        }
        if wanted > self.table.dim(1) || wanted - have > self.available() {
            return Err(Error::Input(format!(
                "{len} positions need {wanted} key/value pages of {PAGE_SIZE}, but only {} are left; shorten the prompt or raise the key/value budget",
                self.table.dim(1).min(have + self.available())
            )));
        }
        for _ in have..wanted {
            let page = self.free.pop().or_else(|| self.cache.evict());
            self.slots[slot].pages.extend(page);
        }
        self.write_row(slot);
        Ok(())
    }

    /// Positions that a slot has pages for.
    pub fn reserved(&self, slot: usize) -> usize {
        self.slots[slot].pages.len() * PAGE_SIZE
    }

    /// How much of a text that is known by `keys` the prefix cache holds: whole pages of at most `limit` positions; and how many of these
    /// pages nobody holds now.
    pub fn cached_prefix(&self, keys: &[PositionKey], limit: usize) -> (usize, usize) {
        let blocks = self.cache.find(keys, limit);
        let idle = blocks.iter().filter(|&&block| self.cache.is_idle(block)).count();
        (blocks.len() * PAGE_SIZE, idle)
    }

    /// Gives the empty `slot` what [`PagePool::cached_prefix`] found; the number of positions.
    pub fn attach(&mut self, slot: usize, keys: &[PositionKey], limit: usize) -> usize {
        assert!(self.slots[slot].pages.is_empty(), "a slot is released before it is taken again");
        for block in self.cache.find(keys, limit) {
            self.slots[slot].pages.push(self.cache.hold(block));
            self.slots[slot].blocks.push(block);
        }
        self.write_row(slot);
        self.slots[slot].blocks.len() * PAGE_SIZE
    }

    /// Publishes the pages of `slot` that lie within its first `len` positions, whose keys and values are final; `keys` are at least as long,
    /// and by the lookahead longer where that is known.
    pub fn publish(&mut self, slot: usize, keys: &[PositionKey], len: usize) {
        let mut swapped = false;
        let Slot { pages, blocks } = &mut self.slots[slot];
        while (blocks.len() + 1) * PAGE_SIZE <= len {
            let index = blocks.len();
            let Some(tokens) = self.cache.block_keys(keys, index) else { break };
            let (block, page) = self.cache.insert(blocks.last().copied(), tokens, pages[index]);
            if page != pages[index] {
                // Someone else has published the same: bit for bit, so theirs serves both.
                self.free.push(std::mem::replace(&mut pages[index], page));
                swapped = true;
            }
            blocks.push(block);
        }
        if swapped {
            self.write_row(slot);
        }
    }

    /// Gives all pages of `slot` back; published ones stay findable.
    pub fn release(&mut self, slot: usize) {
        let Slot { pages, blocks } = std::mem::take(&mut self.slots[slot]);
        self.free.extend(pages[blocks.len()..].iter().rev());
        self.cache.let_go(&blocks);
    }

    /// Forgets what is published and held by nobody.
    pub fn clear_cache(&mut self) {
        while let Some(page) = self.cache.evict() {
            self.free.push(page);
        }
    }

    /// Where a reserved position's key and value are: `page * PAGE_SIZE + offset`.
    pub fn kv_slot(&self, slot: usize, position: usize) -> i32 {
        self.slots[slot].pages[position / PAGE_SIZE] * PAGE_SIZE as i32 + (position % PAGE_SIZE) as i32
    }

    /// Brings the page tables on the device up to date, without waiting. The device must have passed the upload before it.
    pub fn upload(&mut self) -> Result<()> {
        let Some(Range { start, end }) = self.changed.take() else { return Ok(()) };
        let max_pages = self.table.dim(1);
        self.rows.write_range_to(&self.table, start * max_pages..end * max_pages)
    }

    fn write_row(&mut self, slot: usize) {
        let max_pages = self.table.dim(1);
        let pages = &self.slots[slot].pages;
        self.rows.as_mut_slice()[slot * max_pages..][..pages.len()].copy_from_slice(pages);
        let changed = self.changed.take().unwrap_or(slot..slot + 1);
        self.changed = Some(changed.start.min(slot)..changed.end.max(slot + 1));
    }
}
