//! Grammars over tokens, under a byte-level vocabulary (the demo's) and SentencePiece-like ones: random walks end in valid texts,
//! masks say what single tokens say, draft trees leave no trace, and hostile grammars are one sentence.

mod hostile;
mod schema;
mod tokens;
mod trees;
mod vocabularies;
mod walks;
