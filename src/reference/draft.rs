//! Oracles of `kernels/draft.cu`: digests and children by a sort, beam by a sort, next pass by set operations.
#![forbid(unsafe_code)]

use crate::sampling::{DIGEST_LEN, mass, mass_in_row, portable_exp, portable_ln};

/// One proposed child.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Child {
    /// Target id.
    pub token: i32,
    /// Log-probability given its parent.
    pub logp: f32,
    /// Log-probability of the path from the root.
    pub path_logp: f32,
}

/// The `k` likeliest children of a node with `parent_logp`, from its row of draft logits.
pub fn topk(logits: &[f32], d2t: Option<&[i32]>, parent_logp: f32, k: usize) -> Vec<Child> {
    let max = greatest(logits);
    let relative = |logit: f32| relative_to(logit, max);
    let is_possible = max > f32::NEG_INFINITY;
    let mass: u64 = logits.chunks(DIGEST_LEN).map(|slice| slice_mass(slice, max)).sum();
    let ln_mass = portable_ln(mass as f32 / (1u64 << 40) as f32);
    descending(logits)
        .into_iter()
        .take(k)
        .map(|id| {
            let relative = relative(logits[id]);
            let is_possible = is_possible && relative > f32::NEG_INFINITY;
            let logp = if is_possible { relative - ln_mass } else { f32::NEG_INFINITY };
            Child { token: id as i32 + d2t.map_or(0, |d2t| d2t[id]), logp, path_logp: parent_logp + logp }
        })
        .collect()
}

/// The digest of a slice of logits, the first of which is token `first_id`'s: order-preserving key of the best token's logit above 2^32 - 1
/// minus its id, and the mass relative to it.
pub fn digest(slice: &[f32], first_id: usize) -> [u64; 2] {
    let best = descending(slice)[0];
    // Of both zeros that of +0.
    let bits = (slice[best] + 0.0).to_bits();
    let key = match slice[best] {
        logit if logit.is_nan() || logit == f32::NEG_INFINITY => 0,
        _ if bits >> 31 == 1 => !bits,
        _ => bits | 1 << 31,
    };
    [u64::from(key) << 32 | u64::from(u32::MAX - (first_id + best) as u32), own_mass(slice)]
}

/// The weights of a slice, added up relative to its own greatest; where nothing is possible, nothing has mass.
fn own_mass(slice: &[f32]) -> u64 {
    let max = greatest(slice);
    let masses = slice.iter().map(|&x| mass(portable_exp(relative_to(x, max))));
    if max > f32::NEG_INFINITY { masses.sum() } else { 0 }
}

/// The same in a row whose greatest logit is `row_max`.
fn slice_mass(slice: &[f32], row_max: f32) -> u64 {
    mass_in_row(own_mass(slice), portable_exp(relative_to(greatest(slice), row_max)))
}

fn greatest(logits: &[f32]) -> f32 {
    logits.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// 0 for the greatest, even if it is infinite.
fn relative_to(logit: f32, max: f32) -> f32 {
    if logit == max { 0.0 } else { logit - max }
}

/// Indices of `values`, greatest first, equals in order; NaN counts as -inf.
pub fn descending(values: &[f32]) -> Vec<usize> {
    let key = |index: usize| if values[index].is_nan() { f32::NEG_INFINITY } else { values[index] };
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| key(b).partial_cmp(&key(a)).expect("no NaN among the keys"));
    order
}

/// The inputs of one row of the next drafter pass that depend on the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// RoPE position.
    pub position: i32,
    /// Drafter KV slot of its row.
    pub slot: i32,
    /// Runs that the row sees, its own included, as four words.
    pub ancestors: [u64; 4],
}

/// Places run `run` of a sequence whose parent sees the runs `above` (none below the root).
pub fn place(
    above: [u64; 4],
    run: usize,
    first_position: i32,
    prefix_len: i32,
    page_table: &[i32],
    page_size: usize,
) -> Placement {
    let depth: u32 = above.iter().map(|word| word.count_ones()).sum();
    let kv_position = prefix_len as usize + run;
    let mut ancestors = above;
    ancestors[run / 64] |= 1 << (run % 64);
    Placement {
        position: first_position + depth as i32,
        slot: page_table[kv_position / page_size] * page_size as i32 + (kv_position % page_size) as i32,
        ancestors,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_of_all_children_sum_to_one() {
        let logits: Vec<f32> = (0..100).map(|i| ((i * 37) % 23) as f32 * 0.3).collect();
        let children = topk(&logits, None, -1.0, 100);
        let total: f64 = children.iter().map(|child| f64::from(child.logp).exp()).sum();
        assert!((total - 1.0).abs() < 1e-5, "{total}");
        assert!(children.iter().all(|child| child.path_logp == child.logp - 1.0));
        assert!(children.windows(2).all(|pair| pair[0].logp >= pair[1].logp));
    }

    /// Slices without a possible token, with the greatest, far below it and one token long.
    #[test]
    fn slices_add_up_to_the_row() {
        let mut logits: Vec<f32> = (0..3 * DIGEST_LEN + 1).map(|i| ((i * 37) % 101) as f32 * 0.1).collect();
        logits[DIGEST_LEN..2 * DIGEST_LEN].fill(f32::NAN);
        logits[2 * DIGEST_LEN..3 * DIGEST_LEN].iter_mut().for_each(|logit| *logit -= 12.0);
        logits[7] = 14.0;
        let total: f64 =
            logits.iter().filter(|logit| !logit.is_nan()).map(|&logit| f64::from(logit).exp()).sum();
        let likeliest = topk(&logits, None, 0.0, 1)[0];
        assert_eq!(likeliest.token, 7);
        assert!((f64::from(likeliest.logp) - (14.0 - total.ln())).abs() < 1e-6, "{likeliest:?}");
    }

    #[test]
    fn impossible_logits_sort_last_and_stay_inside_the_vocabulary() {
        let children = topk(&[f32::NAN, 1.0, f32::NEG_INFINITY, 1.0], None, 0.0, 4);
        let ids: Vec<i32> = children.iter().map(|child| child.token).collect();
        assert_eq!(ids, [1, 3, 0, 2]);
        assert_eq!(children[2].logp, f32::NEG_INFINITY);
        assert!((children[0].logp + std::f32::consts::LN_2).abs() < 1e-6);
    }

    #[test]
    fn a_run_is_placed_behind_the_prefix_and_below_its_ancestors() {
        let placed = place([0b11, 0, 0, 0], 65, 10, 30, &[0, 0, 0, 0, 0, 7], 16);
        assert_eq!(placed, Placement { position: 12, slot: 7 * 16 + 15, ancestors: [0b11, 0b10, 0, 0] });
    }
}
