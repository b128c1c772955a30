//! Tokenizers with what their models would add: padding, several ends.

use std::path::Path;

use smart_run::text::{Grammar, GrammarCompiler, GrammarSpec, Tokenizer};

pub struct Vocabulary {
    pub name: &'static str,
    pub tokenizer: Tokenizer,
    pub size: usize,
    pub eos: Vec<i32>,
    pub compiler: GrammarCompiler,
}

pub fn tokenizer(file: &str) -> Tokenizer {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    Tokenizer::from_json(&path, &std::fs::read(&path).unwrap()).unwrap()
}

/// The demo's vocabulary as it is, and two of Llama 2's kind with a padded part and a second end in it.
pub fn all() -> Vec<Vocabulary> {
    let of = |name, file: &str, padding, eos: &[i32]| {
        let tokenizer = tokenizer(file);
        let size = tokenizer.num_ids() + padding;
        let compiler = GrammarCompiler::new(&tokenizer, size, eos).unwrap();
        Vocabulary { name, tokenizer, size, eos: eos.to_vec(), compiler }
    };
    vec![
        of("demo", "assets/demo/target/tokenizer.json", 0, &[1]),
        of("llama2_bpe", "tests/golden/tokenizers/llama2_bpe.json", 71, &[2, 600]),
        of("llama2_unigram", "tests/golden/tokenizers/llama2_unigram.json", 3, &[2, 383]),
    ]
}

pub fn demo() -> Vocabulary {
    all().remove(0)
}

impl Vocabulary {
    pub fn compile(&self, spec: &GrammarSpec) -> Grammar {
        self.compiler.compile(spec).unwrap_or_else(|error| panic!("{}: {spec:?}: {error}", self.name))
    }

    pub fn mask(&self, grammar: &mut Grammar) -> Vec<u32> {
        // Whatever a mask held before is cleared.
        let mut mask = vec![0xA5A5_A5A5; self.size.div_ceil(32)];
        grammar.allowed(&mut mask).unwrap();
        mask
    }

    pub fn allowed(&self, grammar: &mut Grammar) -> Vec<i32> {
        tokens(&self.mask(grammar))
    }

    pub fn is_eos(&self, token: i32) -> bool {
        self.eos.contains(&token)
    }

    /// The text of `tokens` as bytes.
    pub fn bytes(&self, tokens: &[i32]) -> Vec<u8> {
        tokens.iter().filter_map(|&token| self.tokenizer.token_bytes(token)).flatten().collect()
    }

    /// Appends a text token by token, as the tokenizer spells it within a text.
    pub fn push(&self, grammar: &mut Grammar, text: &str) {
        for token in self.spell(text) {
            grammar.push(token).unwrap_or_else(|error| panic!("{}: {text:?}: {error}", self.name));
        }
    }

    /// Longest tokens first; every byte is a token.
    pub fn spell(&self, text: &str) -> Vec<i32> {
        let vocabulary: Vec<(i32, Vec<u8>)> =
            (0..self.size as i32).filter_map(|id| Some((id, self.tokenizer.token_bytes(id)?))).collect();
        let (mut rest, mut spelled) = (text.as_bytes(), Vec::new());
        while !rest.is_empty() {
            let (id, bytes) = vocabulary
                .iter()
                .filter(|(_, bytes)| !bytes.is_empty() && rest.starts_with(bytes))
                .max_by_key(|(_, bytes)| bytes.len())
                .unwrap();
            spelled.push(*id);
            rest = &rest[bytes.len()..];
        }
        spelled
    }
}

/// The tokens of a mask.
pub fn tokens(mask: &[u32]) -> Vec<i32> {
    (0..mask.len() * 32).filter(|bit| mask[bit / 32] >> (bit % 32) & 1 == 1).map(|bit| bit as i32).collect()
}

/// Numbers that look random, the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((bits ^ (bits >> 31)) % bound as u64) as usize
    }

    pub fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len())]
    }
}
