//! The conversation so far, and the engine that continues it.

use std::collections::BTreeSet;

use smart_run::engine::{Engine, Request, expand_prompt};
use smart_run::image::Patches;
use smart_run::sampling::SamplingParams;
use smart_run::text::{ChatTemplate, Content, Message, Part, StopStrings, TokenTexts, Tokenizer};
use smart_run::{Error, Result};

use crate::args::ChatArgs;
use crate::generate::{Finish, complete};

use super::tree;

/// A conversation.
pub struct Session {
    engine: Engine,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    stops: StopStrings,
    sampling: SamplingParams,
    max_new_tokens: usize,
    system: Option<Message>,
    /// Messages after the system's, in turn.
    turns: Vec<Message>,
    /// Pictures of the turns, in order.
    pictures: Vec<Patches>,
    /// Pictures that go with the next message.
    waiting: Vec<Patches>,
    /// Tokens of the latest prompt and answer.
    context_len: usize,
}

impl Session {
    pub fn new(
        engine: Engine,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        stops: StopStrings,
        args: &ChatArgs,
    ) -> Self {
        Self {
            engine,
            tokenizer,
            template,
            stops,
            sampling: args.sampling.params(),
            max_new_tokens: args.max_new_tokens,
            system: args.system.as_ref().map(|text| Message::new("system", text)),
            turns: Vec::new(),
            pictures: Vec::new(),
            waiting: Vec::new(),
            context_len: 0,
        }
    }

    /// Forgets all turns.
    pub fn reset(&mut self) {
        self.turns.clear();
        self.pictures.clear();
        self.waiting.clear();
        self.context_len = 0;
    }

    /// Shows `pictures` with the next message.
    pub fn show(&mut self, pictures: impl IntoIterator<Item = Patches>) {
        self.waiting.extend(pictures);
    }

    /// Answers `text`, handing the answer to `show` as it grows. The turn joins the conversation, with its pictures,
    /// only if there was no error.
    ///
    /// # Errors
    /// Input that cannot be answered: the template refuses it, or the context is full.
    pub fn answer(&mut self, text: &str, show: impl FnMut(&str) -> Result<()>) -> Result<Finish> {
        let mut user = Message::new("user", text);
        if !self.waiting.is_empty() {
            let images = self.waiting.iter().map(|_| Part::image());
            user.content = Some(Content::Parts(images.chain([Part::text(text)]).collect()));
        }
        let messages: Vec<Message> = self.system.iter().chain(&self.turns).chain([&user]).cloned().collect();
        // The template writes all special tokens itself.
        let prompt = self.tokenizer.encode(&self.template.render(&messages, None, true)?, false)?;
        self.tokenizer.check_ids(&prompt, self.engine.model_config().geometry.vocab_size)?;
        let pictures: Vec<Patches> = self.pictures.iter().chain(&self.waiting).cloned().collect();
        let prompt = expand_prompt(self.engine.model_config(), &prompt, &pictures)?;
        let room = self.engine.max_context().saturating_sub(prompt.len());
        if room == 0 {
            return Err(Error::Input(format!(
                "the context of {} tokens is full: with this message the conversation has {}; /reset starts a new one",
                self.engine.max_context(),
                prompt.len()
            )));
        }
        let prompt_len = prompt.len();
        // All of the conversation; of the turns before, the engine still has the keys and values.
        let request = Request {
            sampling: self.sampling,
            pictures,
            ..Request::new(prompt, self.max_new_tokens.min(room))
        };
        let done = complete(&mut self.engine, request, Some(&self.tokenizer), &self.stops, show)?;
        self.pictures.append(&mut self.waiting);
        self.context_len = prompt_len + done.tokens.len();
        self.turns.extend([user, Message::new("assistant", done.text.unwrap_or_default())]);
        Ok(done.finish)
    }

    /// Why an answer ended for its length.
    pub fn why_cut(&self) -> String {
        if self.context_len >= self.engine.max_context() {
            format!(
                "the context of {} tokens is full; /reset starts a new conversation",
                self.engine.max_context()
            )
        } else {
            format!("cut after {} tokens: --max-new-tokens", self.max_new_tokens)
        }
    }

    /// The last round's tree as text.
    pub fn tree(&self) -> Result<String> {
        let Some(round) = self.engine.last_round_trace() else {
            return Ok("no round has run yet\n".into());
        };
        let mut ids: BTreeSet<i32> = round.tree.tokens.iter().copied().collect();
        ids.insert(round.bonus_token);
        let texts = TokenTexts::new(self.tokenizer.clone())?.of(&ids)?;
        Ok(tree::drawn(&round, &texts))
    }

    /// Speed and rounds so far.
    pub fn stats(&self) -> String {
        let stats = self.engine.stats();
        format!(
            "{:.1} tokens/s over {} rounds ({}, {}, {}): {:.2} accepted and {:.1} nodes a round\n\
             context: {} of {} tokens, {} messages\n",
            stats.tokens_per_second(),
            stats.rounds,
            self.engine.controller().policy(),
            self.engine.dtype(),
            self.engine.device().name(),
            stats.mean_accepted_len(),
            stats.mean_nodes(),
            self.context_len,
            self.engine.max_context(),
            self.turns.len() + usize::from(self.system.is_some()),
        )
    }
}
