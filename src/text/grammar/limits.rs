//! Bounds on what a grammar may ask for.

use std::time::Duration;

use llguidance::api::ParserLimits;

/// Length of a schema as compact JSON, of an expression or of a grammar. Schemas that people write have some kilobytes.
pub const MAX_SPEC_BYTES: usize = 256 << 10;
/// Nesting of objects and lists in a schema, as deep as `serde_json` reads.
pub const MAX_SCHEMA_DEPTH: usize = 128;
/// Properties of an object. The compiler's work grows with their square: 2000 take a third of a second.
pub const MAX_FIELDS: usize = 2000;
/// Patterns of an object's property names, all held against each other.
pub const MAX_PATTERNS: usize = 64;
/// Numbers that a value is compared with: exact as floating-point numbers, and far from the end of 64 bits.
pub const MAX_NUMBER: f64 = 9_007_199_254_740_992.0;
/// Numbers of characters, items and properties.
pub const MAX_COUNT: f64 = 2_147_483_647.0;
/// Common multiple of all divisors: the product of two such is less than 2^32.
pub const MAX_MULTIPLE: u64 = 65_535;
/// Stack of the compiling thread for each byte of the input: a chain of definitions, each the next one's name, costs 25 bytes
/// a link and less than 8 KiB of stack.
pub const STACK_PER_BYTE: usize = 1024;
/// Compilation takes milliseconds, and never longer than this.
pub const PATIENCE: Duration = Duration::from_secs(4);

/// Bounds on lexer and parser, while they are built and in a step.
pub fn parser_limits() -> ParserLimits {
    ParserLimits {
        // The lexer's states are kept, a kilobyte each, as long as the grammar lives; a text that drafts has two.
        max_lexer_states: 50_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}
