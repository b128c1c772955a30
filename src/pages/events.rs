//! [`CacheEvent`]: what the prefix cache holds, for who follows it from outside; a router that sends a text where its beginning is, say.

use super::PositionKey;

/// A block of the prefix cache came or went. In order, these say what can be found: whoever applies them knows the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheEvent {
    /// A block can be found from now on.
    Stored {
        /// Its name; no other block of this engine ever has it.
        block: u64,
        /// The block before it in its text, which was stored earlier and goes later; none for the first of a text.
        parent: Option<u64>,
        /// What its positions hold, [`CacheLayout::block_size`] and behind them [`CacheLayout::lookahead`] more: token ids, or numbers
        /// below 0 that mean a picture and nothing outside of this process.
        keys: Box<[PositionKey]>,
    },
    /// A block can be found no longer: its page is needed for something else.
    Removed {
        /// Its name.
        block: u64,
    },
}

/// How the prefix cache cuts texts into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLayout {
    /// Positions of a block, which is a page.
    pub block_size: usize,
    /// Tokens behind a block that it depends on: 1 where a drafter's page holds pairs of tokens, else 0. The next block begins with them.
    pub lookahead: usize,
    /// Blocks at most.
    pub num_blocks: usize,
}
