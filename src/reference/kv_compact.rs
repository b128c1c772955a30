//! Compaction of the K/V cache after verification.

/// Sizes of `[planes, pages, num_kv_heads, page_size, head_dim]`; a plane is K or V of one layer.
#[derive(Clone, Copy, Debug)]
pub struct Cache {
    /// Layers times two.
    pub planes: usize,
    /// Pages of a plane.
    pub pages: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// KV positions of a page.
    pub page_size: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl Cache {
    /// Where the row of (plane, head) at KV position `kv_pos` begins.
    pub fn offset(&self, plane: usize, head: usize, pages: &[i32], kv_pos: usize) -> usize {
        let page = plane * self.pages + pages[kv_pos / self.page_size] as usize;
        ((page * self.num_kv_heads + head) * self.page_size + kv_pos % self.page_size) * self.head_dim
    }
}

/// Moves, of one sequence, the rows at `prefix_len + accepted[i]` to `prefix_len + 1 + i`.
pub fn kv_compact<T: Copy>(kv: &mut [T], cache: Cache, pages: &[i32], prefix_len: usize, accepted: &[i32]) {
    let before = kv.to_vec();
    for plane in 0..cache.planes {
        for head in 0..cache.num_kv_heads {
            for (i, &node) in accepted.iter().enumerate() {
                let source = cache.offset(plane, head, pages, prefix_len + node as usize);
                let target = cache.offset(plane, head, pages, prefix_len + 1 + i);
                kv[target..][..cache.head_dim].copy_from_slice(&before[source..][..cache.head_dim]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_move_down_and_the_root_stays() {
        let cache = Cache { planes: 1, pages: 2, num_kv_heads: 1, page_size: 4, head_dim: 1 };
        let mut kv = [10, 11, 12, 13, 14, 15, 16, 17];
        kv_compact(&mut kv, cache, &[1, 0], 2, &[2, 3]); // KV positions 0..8 hold 14..18, 10..14
        assert_eq!(kv, [11, 11, 12, 13, 14, 15, 16, 10]);
    }
}
