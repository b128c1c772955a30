//! Bounds on what a grammar may ask for.

use std::time::Duration;

use llguidance::api::ParserLimits;

/// Length of a schema as compact JSON, of an expression or of a grammar. Schemas that people write have some kilobytes.
pub const MAX_SPEC_BYTES: usize = 256 << 10;
/// Nesting of objects and lists in a schema, as deep as `serde_json` reads.
pub const MAX_SCHEMA_DEPTH: usize = 128;
/// Stack of the compiling thread for each byte of the input: a chain of definitions, each the next one's name, costs 25 bytes
/// a link and less than 8 KiB of stack.
pub const STACK_PER_BYTE: usize = 1024;
/// Compilation takes milliseconds, and never longer than this.
pub const PATIENCE: Duration = Duration::from_secs(4);

/// Bounds on lexer and parser, while they are built and in a step.
pub fn parser_limits() -> ParserLimits {
    ParserLimits {
        // The lexer's states are kept, a kilobyte each, as long as the grammar lives.
        max_lexer_states: 50_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}
