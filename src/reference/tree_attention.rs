//! Attention of tree rows over a paged K/V cache.

/// One sequence of the pass and where its keys are.
pub struct Sequence<'a> {
    /// KV positions that every row sees.
    pub prefix_len: usize,
    /// Page of KV positions `i * page_size..`.
    pub pages: &'a [i32],
    /// The most keys that a row sees, its own and those before it; `None` is all.
    pub window: Option<usize>,
}

/// Sizes that the tensors share.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Query heads.
    pub num_q_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// KV positions of a page.
    pub page_size: usize,
}

impl Heads {
    /// Where the cache `[pages, num_kv_heads, page_size, head_dim]` holds KV position `kv_pos` of `sequence`.
    pub fn cache_offset(&self, sequence: &Sequence, kv_head: usize, kv_pos: usize) -> usize {
        let page = sequence.pages[kv_pos / self.page_size] as usize;
        let row = (page * self.num_kv_heads + kv_head) * self.page_size + kv_pos % self.page_size;
        row * self.head_dim
    }
}

/// KV positions up to a row's own, in logical order: the prefix, then the set bits of its ancestor words.
pub fn path(prefix_len: usize, ancestors: &[u64; 4]) -> Vec<usize> {
    let is_set = |bit: &usize| ancestors[bit / 64] >> (bit % 64) & 1 == 1;
    (0..prefix_len).chain((0..256).filter(is_set).map(|bit| prefix_len + bit)).collect()
}

/// KV positions that a row of `sequence` sees, in logical order: the last of its path, as many as the window holds.
pub fn visible(sequence: &Sequence, ancestors: &[u64; 4]) -> Vec<usize> {
    let mut keys = path(sequence.prefix_len, ancestors);
    let hidden = sequence.window.map_or(0, |window| keys.len().saturating_sub(window));
    keys.split_off(hidden)
}

/// The output `[num_q_heads * head_dim]` of one row with query `q` (same shape).
pub fn row(
    q: &[f32],
    k_cache: &[f32],
    v_cache: &[f32],
    sequence: &Sequence,
    ancestors: &[u64; 4],
    sm_scale: f32,
    heads: Heads,
) -> Vec<f32> {
    let Heads { num_q_heads, num_kv_heads, head_dim, .. } = heads;
    let keys = visible(sequence, ancestors);
    let mut out = Vec::new();
    for q_head in 0..num_q_heads {
        let kv_head = q_head / (num_q_heads / num_kv_heads);
        let q = &q[q_head * head_dim..][..head_dim];
        let at = |cache: &'_ [f32], kv_pos: usize| -> Vec<f64> {
            let offset = heads.cache_offset(sequence, kv_head, kv_pos);
            cache[offset..][..head_dim].iter().map(|&x| f64::from(x)).collect()
        };
        let score = |&kv_pos: &usize| {
            let dot: f64 = at(k_cache, kv_pos).iter().zip(q).map(|(k, &q)| k * f64::from(q)).sum();
            dot * f64::from(sm_scale)
        };
        let scores: Vec<f64> = keys.iter().map(score).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let sum: f64 = weights.iter().sum();
        let mut acc = vec![0.0; head_dim];
        for (weight, &kv_pos) in weights.iter().zip(&keys) {
            for (acc, v) in acc.iter_mut().zip(at(v_cache, kv_pos)) {
                *acc += weight / sum * v;
            }
        }
        out.extend(acc.iter().map(|&x| x as f32));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADS: Heads = Heads { num_q_heads: 2, num_kv_heads: 1, head_dim: 1, page_size: 2 };

    #[test]
    fn sees_the_prefix_and_its_path_only() {
        // pages swapped: KV positions 0..4 hold v = 1, 2, 3, 4
        let sequence = Sequence { prefix_len: 1, pages: &[1, 0], window: None };
        let (k, v) = ([0.0; 4], [3.0, 4.0, 1.0, 2.0]);
        let out = row(&[5.0, 1.0], &k, &v, &sequence, &[0b101, 0, 0, 0], 1.0, HEADS); // the mean of 1, 2 and 4
        assert!(out.iter().all(|x| (x - 7.0 / 3.0).abs() < 1e-6), "{out:?}");
        assert_eq!(path(2, &[0b110, 0, 0, 1]), [0, 1, 3, 4, 194]);
    }

    #[test]
    fn a_window_holds_the_last_of_the_path() {
        let sequence = |window| Sequence { prefix_len: 2, pages: &[], window };
        let words = [0b110, 0, 0, 1];
        assert_eq!(visible(&sequence(Some(4)), &words), [1, 3, 4, 194]);
        assert_eq!(visible(&sequence(Some(1)), &words), [194]);
        for all in [None, Some(5), Some(100)] {
            assert_eq!(visible(&sequence(all), &words), path(2, &words));
        }
    }

    #[test]
    fn weighs_by_the_scaled_scores() {
        let sequence = Sequence { prefix_len: 2, pages: &[0], window: None };
        let out = row(&[2.0, 0.0], &[0.0, 3f32.ln()], &[0.0, 1.0], &sequence, &[0; 4], 0.5, HEADS);
        assert!((out[0] - 0.75).abs() < 1e-6);
        assert_eq!(out[1], 0.5);
    }
}
