//! Seeded numbers that are the same on every machine: SplitMix64 (Steele, Lea, Flood 2014).
#![forbid(unsafe_code)]

/// A stream of numbers.
pub(crate) struct Random(pub u64);

impl Random {
    /// The stream that `seed` and `key` name.
    pub fn keyed(seed: u64, key: [u64; 3]) -> Self {
        Self(key.iter().fold(seed, |state, &part| mix(state ^ part.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
    }

    /// In [0, 1).
    pub fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix(self.0) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// In `0..bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.unit() * bound as f64) as usize
    }

    /// `items` in a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// Spreads every bit of `z` over all bits.
pub(super) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
