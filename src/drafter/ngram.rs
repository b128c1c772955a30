//! [`NgramModel`]: a drafter without weights, which guesses that a text goes on as it went on before.
//!
//! Prompt lookup (Saxena, *Prompt Lookup Decoding*, 2023; vLLM's `ngram`) copies what followed the latest occurrence of the last few
//! tokens. This is the same idea as a tree: a language model of the request's own text, prompt and answer, of all n-grams up to
//! [`MAX_ORDER`] tokens of context, interpolated by Witten and Bell's rule (*The zero-frequency problem*, 1991): the more different tokens
//! have followed a context, the more the next shorter one has to say. Its probabilities are rough; the controller calibrates them by what
//! the target makes of them, as any drafter's.
#![forbid(unsafe_code)]

use std::collections::HashMap;

/// Longest context in tokens.
pub const MAX_ORDER: usize = 4;

/// The last tokens before the one to guess, newest last; places before the text's begin are empty.
pub type Context = [i32; MAX_ORDER];

/// No token.
const EMPTY: i32 = -1;

/// The context of an empty text.
pub const NO_CONTEXT: Context = [EMPTY; MAX_ORDER];

/// `context` one token later.
pub fn shifted(mut context: Context, token: i32) -> Context {
    context.rotate_left(1);
    context[MAX_ORDER - 1] = token;
    context
}

/// What has followed one context: tokens with their counts, and how often the context has occurred.
#[derive(Clone, Debug, Default)]
struct Continuations {
    tokens: Vec<(i32, u32)>,
    /// Where each stands among `tokens`, once they are many: most contexts have been followed by one.
    places: HashMap<i32, usize>,
    total: u32,
}

impl Continuations {
    /// Tokens among which one is found by looking at all.
    const FEW: usize = 32;

    fn count(&mut self, token: i32) {
        self.total += 1;
        let known = match self.tokens.len() <= Self::FEW {
            true => self.tokens.iter().position(|&(other, _)| other == token),
            false => self.places.get(&token).copied(),
        };
        if let Some(place) = known {
            self.tokens[place].1 += 1;
            return;
        }
        self.tokens.push((token, 1));
        if self.tokens.len() > Self::FEW {
            // All of them the first time.
            let new = self.places.len()..self.tokens.len();
            self.places.extend(new.map(|place| (self.tokens[place].0, place)));
        }
    }
}

/// Counts of one text.
#[derive(Clone, Debug, Default)]
pub struct NgramModel {
    vocab_size: usize,
    /// By the context's last 1 to [`MAX_ORDER`] tokens, the places before them empty.
    counts: HashMap<Context, Continuations>,
    context: Context,
    len: usize,
    /// Tokens that have followed a context, with their probabilities; kept for its memory.
    candidates: Vec<(i32, f32)>,
    places: HashMap<i32, usize>,
}

impl NgramModel {
    /// A model of an empty text over `vocab_size` tokens.
    pub fn new(vocab_size: usize) -> Self {
        Self { vocab_size, context: NO_CONTEXT, ..Self::default() }
    }

    /// Tokens read.
    pub fn len(&self) -> usize {
        self.len
    }

    /// The context after the text.
    pub fn context(&self) -> Context {
        self.context
    }

    /// Reads the text's next tokens.
    pub fn read(&mut self, tokens: &[i32]) {
        for &token in tokens {
            for suffix in suffixes(self.context) {
                self.counts.entry(suffix).or_default().count(token);
            }
            self.context = shifted(self.context, token);
            self.len += 1;
        }
    }

    /// Appends the `count` likeliest tokens after `context`, which need not be the text's last, and their log-probabilities, best first;
    /// ties go to the smaller token. `count` is at most the vocabulary.
    pub fn children(&mut self, context: Context, count: usize, tokens: &mut Vec<i32>, logps: &mut Vec<f32>) {
        self.candidates.clear();
        self.places.clear();
        // What every token has that has followed none of the contexts.
        let mut rest = 1.0 / self.vocab_size as f32;
        for suffix in suffixes(context) {
            let Some(seen) = self.counts.get(&suffix) else { break };
            let kinds = seen.tokens.len() as f32;
            let whole = seen.total as f32 + kinds;
            let shorter = kinds / whole;
            rest *= shorter;
            self.candidates.iter_mut().for_each(|(_, prob)| *prob *= shorter);
            for &(token, times) in &seen.tokens {
                let place = *self.places.entry(token).or_insert_with(|| {
                    self.candidates.push((token, rest));
                    self.candidates.len() - 1
                });
                self.candidates[place].1 += times as f32 / whole;
            }
        }
        self.candidates.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let known = self.candidates.iter().map(|&(token, prob)| (token, prob.min(1.0)));
        let places = &self.places;
        let unknown = (0..self.vocab_size as i32).filter(|token| !places.contains_key(token));
        for (token, prob) in known.chain(unknown.map(|token| (token, rest))).take(count) {
            tokens.push(token);
            logps.push(prob.ln());
        }
    }
}

/// The context's last token, last two tokens, ... as far as there are any.
fn suffixes(context: Context) -> impl Iterator<Item = Context> {
    let known = context.iter().rev().take_while(|&&token| token != EMPTY).count();
    (1..=known).map(move |len| {
        let mut suffix = NO_CONTEXT;
        suffix[MAX_ORDER - len..].copy_from_slice(&context[MAX_ORDER - len..]);
        suffix
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(text: &[i32]) -> NgramModel {
        let mut model = NgramModel::new(50);
        model.read(text);
        model
    }

    fn children(model: &mut NgramModel, context: Context, count: usize) -> Vec<(i32, f32)> {
        let (mut tokens, mut logps) = (Vec::new(), Vec::new());
        model.children(context, count, &mut tokens, &mut logps);
        tokens.into_iter().zip(logps.into_iter().map(f32::exp)).collect()
    }

    /// Straight from the definition: p_n(t) = (c_n(t) + kinds_n p_{n-1}(t)) / (total_n + kinds_n), counted anew over the text.
    fn by_definition(text: &[i32], context: &[i32], vocab_size: usize, token: i32) -> f64 {
        let mut prob = 1.0 / vocab_size as f64;
        for len in 1..=context.len().min(MAX_ORDER) {
            let suffix = &context[context.len() - len..];
            let after: Vec<i32> = text
                .windows(len + 1)
                .filter(|window| &window[..len] == suffix)
                .map(|window| window[len])
                .collect();
            let kinds = after.iter().collect::<std::collections::HashSet<_>>().len() as f64;
            if kinds > 0.0 {
                let count = after.iter().filter(|&&other| other == token).count() as f64;
                prob = (count + kinds * prob) / (after.len() as f64 + kinds);
            }
        }
        prob
    }

    #[test]
    fn probabilities_are_those_of_the_definition_and_sum_to_one() {
        let few: Vec<i32> = (0..300u64).map(|i| (i * i / 7 % 11 + i % 3) as i32).collect();
        // One token that nearly all others follow, some more often.
        let many: Vec<i32> = (0..300).map(|i| if i % 2 == 0 { 3 } else { i * i % 48 + i % 5 / 4 }).collect();
        for text in [few, many] {
            let mut model = model(&text);
            let mut context = model.context();
            for token in [3, 4, 49, 3, 7, 0] {
                let all = children(&mut model, context, 50);
                assert!((all.iter().map(|child| f64::from(child.1)).sum::<f64>() - 1.0).abs() < 1e-4);
                assert!(all.windows(2).all(|pair| pair[0].1 >= pair[1].1), "best first");
                for &(token, prob) in &all {
                    let wanted = by_definition(&text, &context, 50, token);
                    assert!((f64::from(prob) - wanted).abs() < 1e-5, "{token}: {prob} instead of {wanted}");
                }
                context = shifted(context, token);
            }
        }
        let many: Vec<i32> = (0..300).map(|i| if i % 2 == 0 { 3 } else { i / 2 % 45 }).collect();
        let model = model(&many);
        let followers = &model.counts[&shifted(NO_CONTEXT, 3)];
        assert!(followers.tokens.len() == 45 && followers.places.len() == 45);
    }

    #[test]
    fn a_repeated_phrase_is_drafted_to_its_end() {
        let phrase = [5, 9, 2, 7, 1, 8];
        let mut model = model(&[&phrase[..], &[30, 31], &phrase[..2]].concat());
        let mut context = model.context();
        for &token in &phrase[2..] {
            let best = children(&mut model, context, 3)[0];
            assert!(best.0 == token && best.1 > 0.5, "{best:?}");
            context = shifted(context, token);
        }
    }

    #[test]
    fn siblings_differ_and_an_empty_text_knows_nothing() {
        let all = children(&mut model(&[]), NO_CONTEXT, 10);
        assert_eq!(all.iter().map(|child| child.0).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
        let all = children(&mut model(&[4, 4, 4, 2]), [EMPTY, EMPTY, 4, 4], 50);
        let tokens: std::collections::HashSet<i32> = all.iter().map(|child| child.0).collect();
        assert_eq!(tokens.len(), 50);
    }
}
