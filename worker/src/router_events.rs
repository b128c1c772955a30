//! [`RouterBlocks`]: blocks of the prefix cache as Dynamo's router names them.
//!
//! The router hashes a prompt block by block and asks which worker has stored these hashes. So a block's name here is a function of its
//! text and what comes before it, the same on every worker: the hash of its tokens (with the one behind them where the cache has a
//! lookahead, which is what the router calls Eagle), chained to its parent's.

use std::collections::HashMap;

use dynamo_kv_router::protocols::{
    BlockHashOptions, ExternalSequenceBlockHash, KvCacheEventData, KvCacheRemoveData, KvCacheStoreData,
    KvCacheStoredBlockData, compute_block_hash_for_seq, compute_next_seq_hash,
};
use smart_run::engine::{CacheEvent, CacheLayout};

/// Names of the blocks that are stored now.
pub struct RouterBlocks {
    layout: CacheLayout,
    names: HashMap<u64, u64>,
}

impl RouterBlocks {
    pub fn new(layout: CacheLayout) -> Self {
        Self { layout, names: HashMap::new() }
    }

    /// What the router is told of `event`; nothing for blocks that hold a picture, which no other process can name, and for those behind.
    pub fn translate(&mut self, event: CacheEvent) -> Option<KvCacheEventData> {
        match event {
            CacheEvent::Stored { block, parent, keys } => {
                let parent = match parent {
                    Some(parent) => Some(*self.names.get(&parent)?),
                    None => None,
                };
                let tokens: Option<Vec<u32>> = keys.iter().map(|&key| u32::try_from(key).ok()).collect();
                let options =
                    BlockHashOptions { is_eagle: Some(is_eagle(self.layout)), ..BlockHashOptions::default() };
                let hashes = compute_block_hash_for_seq(&tokens?, self.layout.block_size as u32, options);
                let &tokens_hash = hashes.first()?;
                let name = parent.map_or(tokens_hash.0, |parent| compute_next_seq_hash(parent, tokens_hash));
                self.names.insert(block, name);
                let stored = KvCacheStoredBlockData {
                    block_hash: ExternalSequenceBlockHash(name),
                    tokens_hash,
                    mm_extra_info: None,
                };
                Some(KvCacheEventData::Stored(KvCacheStoreData {
                    parent_hash: parent.map(ExternalSequenceBlockHash),
                    start_position: None,
                    blocks: vec![stored],
                }))
            }
            CacheEvent::Removed { block } => {
                let name = self.names.remove(&block)?;
                Some(KvCacheEventData::Removed(KvCacheRemoveData {
                    block_hashes: vec![ExternalSequenceBlockHash(name)],
                }))
            }
        }
    }
}

/// Whether blocks depend on the token behind them.
pub fn is_eagle(layout: CacheLayout) -> bool {
    layout.lookahead == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use dynamo_kv_router::protocols::{LocalBlockHash, compute_seq_hash_for_block};

    fn stored(block: u64, parent: Option<u64>, keys: &[i64]) -> CacheEvent {
        CacheEvent::Stored { block, parent, keys: keys.into() }
    }

    /// The names that the router finds in a prompt are those that the worker has published for it.
    #[test]
    fn names_are_what_the_router_makes_of_the_same_text() {
        for lookahead in [0, 1] {
            let prompt: Vec<u32> = (100..100 + 3 * 16 + 5).collect();
            let options = BlockHashOptions { is_eagle: Some(lookahead == 1), ..BlockHashOptions::default() };
            let wanted: Vec<LocalBlockHash> = compute_block_hash_for_seq(&prompt, 16, options);
            let chained = compute_seq_hash_for_block(&wanted);
            assert_eq!(wanted.len(), 3);
            let layout = CacheLayout { block_size: 16, lookahead, num_blocks: 8 };
            let mut blocks = RouterBlocks::new(layout);
            let keys: Vec<i64> = prompt.iter().map(|&token| token.into()).collect();
            for i in 0..3_usize {
                let own = &keys[i * 16..(i + 1) * 16 + lookahead];
                let parent = i.checked_sub(1);
                let event =
                    blocks.translate(stored(10 + i as u64, parent.map(|i| 10 + i as u64), own)).unwrap();
                let KvCacheEventData::Stored(data) = event else { panic!("{event:?}") };
                assert_eq!(data.parent_hash, parent.map(|i| ExternalSequenceBlockHash(chained[i])));
                assert_eq!(data.blocks[0].tokens_hash, wanted[i]);
                assert_eq!(data.blocks[0].block_hash, ExternalSequenceBlockHash(chained[i]));
            }
            let gone = blocks.translate(CacheEvent::Removed { block: 12 });
            let gone_name = vec![ExternalSequenceBlockHash(chained[2])];
            assert_eq!(gone, Some(KvCacheEventData::Removed(KvCacheRemoveData { block_hashes: gone_name })));
            assert_eq!(blocks.translate(CacheEvent::Removed { block: 12 }), None);
        }
    }

    #[test]
    fn pictures_and_what_is_behind_them_are_not_told() {
        let mut blocks = RouterBlocks::new(CacheLayout { block_size: 16, lookahead: 0, num_blocks: 8 });
        let mut picture = [7_i64; 16];
        picture[3] = -5;
        assert_eq!(blocks.translate(stored(1, None, &picture)), None);
        assert_eq!(blocks.translate(stored(2, Some(1), &[7; 16])), None);
        assert_eq!(blocks.translate(CacheEvent::Removed { block: 1 }), None);
    }
}
