//! [`Card`]: what a GPU can do, from its datasheet and the share of it that good kernels achieve.
#![forbid(unsafe_code)]

/// What a card can do, as achieved by good kernels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Card {
    /// Bytes per second of memory.
    pub bandwidth: f64,
    /// Floating-point operations per second of bf16 matrix products.
    pub matmul: f64,
    /// The same inside attention.
    pub attention: f64,
}

impl Card {
    /// One H200 SXM: 4.3 of 4.8 TB/s as copied (share 0.90), 790 of 989.4 TFLOP/s dense bf16 as multiplied at 8192^3 (share 0.80,
    /// limited by power), 350 TFLOP/s inside attention (share 0.35: short tiles, exponentials between two products).
    pub const H200: Card = Card { bandwidth: 4.3e12, matmul: 790e12, attention: 350e12 };

    /// One H100 SXM5 80 GB: 3.35 TB/s and 989.4 TFLOP/s dense bf16 by the datasheet. The H200's chip and power limit, so the
    /// H200's shares.
    pub const H100_SXM: Card =
        Card { bandwidth: 0.90 * 3.35e12, matmul: 0.80 * 989.4e12, attention: 0.35 * 989.4e12 };

    /// One L40S: 864 GB/s and 362.05 TFLOP/s dense bf16 by the datasheet. Shares are assumed until one is measured: 0.85 of the
    /// bandwidth, as the error correction of GDDR6 takes some of the 0.89 that an RTX 4090 without it reaches in decoding; 0.70 of
    /// the products, as 350 W do not hold the boost clock; 0.50 in attention, whose `mma` instructions are this chip's fastest.
    pub const L40S: Card =
        Card { bandwidth: 0.85 * 864e9, matmul: 0.70 * 362.05e12, attention: 0.50 * 362.05e12 };

    /// One RTX Pro 6000 Blackwell, workstation edition, 600 W: 1792 GB/s and 503.8 TFLOP/s dense bf16 by the datasheet. Shares are
    /// assumed until one is measured: 0.90 of the bandwidth, 0.80 of the products, and in attention 0.50, as on the L40S.
    pub const RTX_PRO_6000: Card =
        Card { bandwidth: 0.90 * 1792e9, matmul: 0.80 * 503.8e12, attention: 0.50 * 503.8e12 };
}
