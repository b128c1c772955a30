//! From rounds to chunks: the stream that a request is answered with.

use std::sync::Arc;

use dynamo_backend_common::{
    AsyncEngineContext, CompletionUsage, DynamoError, LLMEngineOutput, LLMEngineOutputExt,
    PromptTokensDetails, TopLogprob, TopLogprobs,
};
use futures::stream::BoxStream;
use smart_run::engine::{FinishReason, TokenLogprobs};
use smart_run::service::{Client, Update, Updates, Usage};
use smart_run::text::StopStream;

use crate::errors::{ended_early, shut_down, unknown};
use crate::metrics::Counts;

/// A chunk, or how the text ended badly.
pub type Chunk = Result<LLMEngineOutput, DynamoError>;

/// How the tokens of one request become chunks.
pub struct Answer {
    /// Tokens that end the text and are part of it.
    visible_stops: Vec<u32>,
    /// Watches for stop strings, if the request has some.
    stops: Option<StopStream>,
    /// Prompts and what was found of them.
    counts: Arc<Counts>,
    /// To know whether the engine has ended.
    client: Client,
    /// Tokens that the chunks so far have.
    told: u32,
    usage: Usage,
}

impl Answer {
    /// For a prompt of so many tokens.
    pub fn new(
        prompt_tokens: usize,
        visible_stops: Vec<u32>,
        stops: Option<StopStream>,
        counts: Arc<Counts>,
        client: Client,
    ) -> Self {
        let usage = Usage { prompt_tokens, ..Usage::default() };
        Self { visible_stops, stops, counts, client, told: 0, usage }
    }

    /// One chunk a round, the last of them with the reason why the text ends. Dropping the stream cancels the request, as does `context`.
    pub fn stream(
        mut self,
        mut updates: Updates,
        context: Arc<dyn AsyncEngineContext>,
    ) -> BoxStream<'static, Chunk> {
        Box::pin(async_stream::stream! {
            loop {
                let update = tokio::select! {
                    biased;
                    () = context.stopped() => None,
                    () = context.killed() => None,
                    update = updates.next() => Some(update),
                };
                let Some(update) = update else {
                    // The place is free before anyone is told.
                    drop(updates);
                    yield Ok(self.ended(LLMEngineOutput::cancelled()));
                    return;
                };
                let chunk = match update {
                    Some(Ok(update)) => self.chunk(update),
                    Some(Err(error)) => Err(ended_early(error, &self.client)),
                    None => Err(shut_down("the engine ended before the text did")),
                };
                match chunk {
                    Ok(chunk) if chunk.finish_reason.is_some() => {
                        // What the round has brought behind a stop is not wanted, nor what would follow.
                        drop(updates);
                        yield Ok(self.ended(chunk));
                        return;
                    }
                    Ok(chunk) if chunk.token_ids.is_empty() => continue,
                    Ok(chunk) => yield Ok(chunk),
                    Err(error) => {
                        yield Err(error);
                        return;
                    }
                }
            }
        })
    }

    fn chunk(&mut self, update: Update) -> Chunk {
        let Update { mut tokens, mut logprobs, finished, usage, .. } = update;
        self.usage = usage;
        let end = self.stop_within(&tokens)?;
        if let Some(end) = end {
            tokens.truncate(end);
            logprobs.truncate(end);
        }
        let reason = match (end, finished) {
            (Some(_), _) | (None, Some(FinishReason::Eos)) => LLMEngineOutput::stop(),
            (None, Some(FinishReason::Length)) => LLMEngineOutput::length(),
            (None, Some(FinishReason::Failed)) => return Err(unknown("the request failed")),
            (None, None) => LLMEngineOutput::default(),
        };
        let (log_probs, top_logprobs) = if logprobs.is_empty() { (None, None) } else { listed(logprobs) };
        self.told += tokens.len() as u32;
        let chunk = reason.with_tokens(tokens.into_iter().map(|token| token as u32).collect());
        Ok(LLMEngineOutput { log_probs, top_logprobs, ..chunk })
    }

    /// How many of the tokens there are up to a stop, it included.
    fn stop_within(&mut self, tokens: &[i32]) -> Result<Option<usize>, DynamoError> {
        for (i, &token) in tokens.iter().enumerate() {
            if let Some(stops) = &mut self.stops {
                stops.push(token).map_err(|error| unknown(error.to_string()))?;
            }
            let stopped = self.stops.as_ref().is_some_and(StopStream::stopped);
            if stopped || self.visible_stops.contains(&(token as u32)) {
                return Ok(Some(i + 1));
            }
        }
        Ok(None)
    }

    fn ended(&self, last: LLMEngineOutput) -> LLMEngineOutput {
        let Usage { prompt_tokens, cached_tokens, .. } = self.usage;
        self.counts.count_prompt(prompt_tokens, cached_tokens);
        let (prompt_tokens, cached_tokens) = (prompt_tokens as u32, cached_tokens as u32);
        last.with_usage(CompletionUsage {
            prompt_tokens,
            completion_tokens: self.told,
            total_tokens: prompt_tokens.saturating_add(self.told),
            prompt_tokens_details: Some(PromptTokensDetails {
                cached_tokens: Some(cached_tokens),
                ..PromptTokensDetails::default()
            }),
            completion_tokens_details: None,
        })
    }
}

/// Log-probabilities as the contract lists them. The frontend writes the tokens' texts.
fn listed(logprobs: Vec<TokenLogprobs>) -> (Option<Vec<f64>>, Option<TopLogprobs>) {
    let drawn = logprobs.iter().map(|one| f64::from(one.logprob)).collect();
    let top = |one: TokenLogprobs| {
        let ranked = one.top.into_iter().zip(1..);
        ranked
            .map(|((token, logprob), rank)| TopLogprob {
                rank,
                token_id: token as u32,
                token: None,
                logprob: logprob.into(),
                bytes: None,
            })
            .collect()
    };
    (Some(drawn), Some(logprobs.into_iter().map(top).collect()))
}
