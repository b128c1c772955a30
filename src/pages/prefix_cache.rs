//! [`PrefixCache`]: pages found by the text that they hold.
//!
//! A tree of blocks, one a page. A block is known by its parent and its own tokens, compared one by one: two texts never share a page
//! because of a hash. Blocks that nobody holds are evicted when their page is needed, the least recently used first and, of one text, the
//! last first.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};

use super::{CacheEvent, PositionKey};

/// Names a block; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct BlockId(u64);

/// Order of eviction: time of the last use, depth.
type Rank = (u64, Reverse<usize>);

struct Block {
    page: i32,
    parent: Option<BlockId>,
    own: Box<[PositionKey]>,
    depth: usize,
    holders: usize,
    last_use: u64,
}

/// Blocks by text.
pub(super) struct PrefixCache {
    page_size: usize,
    lookahead: usize,
    /// By hash of the key, so that to look a text up copies nothing of it.
    by_hash: HashMap<u64, Vec<BlockId>>,
    hasher: RandomState,
    blocks: HashMap<BlockId, Block>,
    /// Blocks that nobody holds. Who holds a block holds its ancestors, so they come with their descendants or behind them.
    idle: BTreeSet<(Rank, BlockId)>,
    next_id: u64,
    now: u64,
    /// What has happened since it was asked for last, while somebody listens.
    events: Option<Vec<CacheEvent>>,
}

impl PrefixCache {
    /// Of pages of `page_size` positions; see [`PagePool::new`](super::PagePool::new).
    pub fn new(page_size: usize, lookahead: usize) -> Self {
        Self {
            page_size,
            lookahead,
            by_hash: HashMap::new(),
            hasher: RandomState::new(),
            blocks: HashMap::new(),
            idle: BTreeSet::new(),
            next_id: 0,
            now: 0,
            events: None,
        }
    }

    /// Begins or ends to keep what happens for [`PrefixCache::take_events`].
    pub fn record(&mut self, wanted: bool) {
        self.events = wanted.then(|| self.events.take().unwrap_or_default());
    }

    /// What has happened since it was asked for last.
    pub fn take_events(&mut self) -> Vec<CacheEvent> {
        self.events.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// All blocks as they would be stored anew, parents first.
    pub fn stored(&self) -> Vec<CacheEvent> {
        let mut ids: Vec<BlockId> = self.blocks.keys().copied().collect();
        // A parent is older than its children.
        ids.sort_unstable();
        ids.into_iter().filter_map(|id| Some(stored_event(id, self.blocks.get(&id)?))).collect()
    }

    /// Tokens behind a block that it depends on.
    pub fn lookahead(&self) -> usize {
        self.lookahead
    }

    /// What page number `index` of a text is known by, if the text is long enough.
    pub fn block_keys<'a>(&self, keys: &'a [PositionKey], index: usize) -> Option<&'a [PositionKey]> {
        keys.get(index * self.page_size..(index + 1) * self.page_size + self.lookahead)
    }

    /// Blocks of the longest known prefix of at most `limit` positions.
    pub fn find(&self, keys: &[PositionKey], limit: usize) -> Vec<BlockId> {
        let mut found: Vec<BlockId> = Vec::new();
        while (found.len() + 1) * self.page_size <= limit {
            let Some(own) = self.block_keys(keys, found.len()) else { break };
            let Some(block) = self.known(found.last().copied(), own) else { break };
            found.push(block);
        }
        found
    }

    /// The block behind `parent` that is known by `own`: whatever has its hash is compared key by key.
    fn known(&self, parent: Option<BlockId>, own: &[PositionKey]) -> Option<BlockId> {
        let same = self.by_hash.get(&self.hasher.hash_one((parent, own)))?;
        let is_it = |block: &Block| block.parent == parent && *block.own == *own;
        same.iter().copied().find(|id| self.blocks.get(id).is_some_and(is_it))
    }

    /// One more holder; the block's page.
    pub fn hold(&mut self, id: BlockId) -> i32 {
        let Some(block) = self.blocks.get_mut(&id) else { unreachable!("blocks that were found exist") };
        if block.holders == 0 {
            self.idle.remove(&(rank(block), id));
        }
        block.holders += 1;
        block.page
    }

    /// One holder less for each of a text's blocks.
    pub fn let_go(&mut self, ids: &[BlockId]) {
        self.now += 1;
        for &id in ids {
            let Some(block) = self.blocks.get_mut(&id) else { continue };
            block.holders -= 1;
            block.last_use = self.now;
            if block.holders == 0 {
                self.idle.insert((rank(block), id));
            }
        }
    }

    /// Makes `page` known behind `parent` by `own`, with one holder; if that is known already, one more holder of what is. The block and
    /// its page.
    pub fn insert(&mut self, parent: Option<BlockId>, own: &[PositionKey], page: i32) -> (BlockId, i32) {
        if let Some(id) = self.known(parent, own) {
            return (id, self.hold(id));
        }
        let id = BlockId(self.next_id);
        self.next_id += 1;
        let depth = parent.and_then(|parent| self.blocks.get(&parent)).map_or(0, |parent| parent.depth + 1);
        self.by_hash.entry(self.hasher.hash_one((parent, own))).or_default().push(id);
        let block = Block { page, parent, own: own.into(), depth, holders: 1, last_use: self.now };
        if let Some(events) = &mut self.events {
            events.push(stored_event(id, &block));
        }
        self.blocks.insert(id, block);
        (id, page)
    }

    /// Forgets the block that is wanted least; its page.
    pub fn evict(&mut self) -> Option<i32> {
        let (_, id) = self.idle.pop_first()?;
        let block = self.blocks.remove(&id)?;
        let hash = self.hasher.hash_one((block.parent, &block.own[..]));
        if let Some(same) = self.by_hash.get_mut(&hash) {
            same.retain(|&other| other != id);
            if same.is_empty() {
                self.by_hash.remove(&hash);
            }
        }
        if let Some(events) = &mut self.events {
            events.push(CacheEvent::Removed { block: id.0 });
        }
        Some(block.page)
    }

    /// Whether nobody holds it.
    pub fn is_idle(&self, id: BlockId) -> bool {
        self.blocks.get(&id).is_some_and(|block| block.holders == 0)
    }

    /// Blocks that nobody holds.
    pub fn num_idle(&self) -> usize {
        self.idle.len()
    }
}

fn stored_event(id: BlockId, block: &Block) -> CacheEvent {
    CacheEvent::Stored { block: id.0, parent: block.parent.map(|parent| parent.0), keys: block.own.clone() }
}

fn rank(block: &Block) -> Rank {
    (block.last_use, Reverse(block.depth))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text of pages that hold these numbers twice each (pages of two positions).
    fn text(pages: &[PositionKey]) -> Vec<PositionKey> {
        pages.iter().flat_map(|&page| [page, page]).collect()
    }

    fn publish(cache: &mut PrefixCache, pages: &[PositionKey], first_page: i32) -> Vec<BlockId> {
        let keys = text(pages);
        let mut blocks = Vec::new();
        for index in 0.. {
            let Some(own) = cache.block_keys(&keys, index) else { break };
            let own = own.to_vec();
            blocks.push(cache.insert(blocks.last().copied(), &own, first_page + index as i32).0);
        }
        blocks
    }

    #[test]
    fn a_text_finds_its_longest_known_prefix_within_the_limit() {
        let mut cache = PrefixCache::new(2, 0);
        let blocks = publish(&mut cache, &[1, 2, 3], 10);
        assert_eq!(cache.find(&text(&[1, 2, 9]), 6), blocks[..2]);
        assert_eq!(cache.find(&text(&[1, 2, 3, 4]), 8), blocks);
        assert_eq!(cache.find(&text(&[1, 2, 3]), 5), blocks[..2], "the limit cuts inside the third page");
        assert!(cache.find(&text(&[2, 3]), 4).is_empty(), "pages depend on what comes before them");
    }

    #[test]
    fn with_lookahead_the_token_behind_a_page_is_part_of_it() {
        let mut cache = PrefixCache::new(2, 1);
        assert_eq!(publish(&mut cache, &[1, 2, 3], 10).len(), 2, "what follows the third page is not known");
        assert_eq!(cache.find(&text(&[1, 2, 3]), 6).len(), 2);
        assert_eq!(cache.find(&text(&[1, 2, 9]), 6).len(), 1, "the second page was followed by a 3");
    }

    #[test]
    fn what_is_held_stays_and_the_rest_goes_oldest_and_deepest_first() {
        let mut cache = PrefixCache::new(2, 0);
        let old = publish(&mut cache, &[1, 2], 10);
        let new = publish(&mut cache, &[1, 3], 20);
        assert_eq!(old[0], new[0], "the first page is shared");
        assert_eq!(cache.evict(), None, "all are held");
        cache.let_go(&old);
        cache.let_go(&new);
        assert_eq!(cache.num_idle(), 3);
        // The text that went first goes first; the shared page was used by both.
        assert_eq!([cache.evict(), cache.evict(), cache.evict()], [Some(11), Some(21), Some(10)]);
        assert_eq!(cache.evict(), None);
        assert!(cache.find(&text(&[1]), 2).is_empty());
    }

    #[test]
    fn the_same_text_published_twice_is_one() {
        let mut cache = PrefixCache::new(2, 0);
        let first = publish(&mut cache, &[1, 2], 10);
        let (block, page) = cache.insert(Some(first[0]), &[2, 2], 77);
        assert_eq!((block, page), (first[1], 11));
        cache.let_go(&first);
        assert_eq!(cache.num_idle(), 1, "the second page has another holder");
    }

    #[test]
    fn a_block_behind_an_evicted_parent_is_not_found_under_another() {
        let mut cache = PrefixCache::new(2, 0);
        let blocks = publish(&mut cache, &[1, 2], 10);
        cache.let_go(&blocks);
        assert_eq!(cache.evict(), Some(11));
        let again = publish(&mut cache, &[1], 30);
        assert_eq!(again[0], blocks[0]);
        assert_eq!(cache.find(&text(&[1, 2]), 4), again);
    }

    /// What one who applies all events knows: blocks with their parents and keys, by name.
    type Known = HashMap<u64, (Option<u64>, Box<[PositionKey]>)>;

    fn apply(known: &mut Known, events: Vec<CacheEvent>) {
        for event in events {
            match event {
                CacheEvent::Stored { block, parent, keys } => {
                    assert!(parent.is_none_or(|parent| known.contains_key(&parent)), "parents come first");
                    assert!(known.insert(block, (parent, keys)).is_none(), "names are used once");
                }
                CacheEvent::Removed { block } => {
                    assert!(known.remove(&block).is_some(), "only what was stored is removed");
                    let mut parents = known.values().filter_map(|&(parent, _)| parent);
                    assert!(parents.all(|parent| parent != block), "children go first");
                }
            }
        }
    }

    #[test]
    fn events_tell_what_is_found_and_nothing_is_kept_for_nobody() {
        let mut cache = PrefixCache::new(2, 1);
        let early = publish(&mut cache, &[1, 2, 3], 10);
        assert!(cache.take_events().is_empty(), "nobody has asked");

        cache.record(true);
        let mut known = Known::new();
        apply(&mut known, cache.stored());
        let late = publish(&mut cache, &[1, 2, 4, 5], 20);
        cache.let_go(&early);
        cache.let_go(&late);
        let first = cache.take_events();
        assert_eq!(first.len(), 2, "the block of 1s was there; that of 2s has another token behind it");
        apply(&mut known, first);
        while cache.num_idle() > 1 {
            cache.evict();
        }
        apply(&mut known, cache.take_events());
        let left: Vec<_> = known.values().map(|(parent, keys)| (*parent, &keys[..])).collect();
        assert_eq!(left, [(None, &[1, 1, 2][..])], "a block holds its tokens and the one behind");

        cache.record(false);
        cache.evict();
        assert!(cache.take_events().is_empty());
    }
}
