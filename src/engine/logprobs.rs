//! [`LogprobReader`]: log-probabilities of emitted tokens, from the logits that they were drawn from.

use crate::device::{DType, Device, Tensor};
use crate::engine::commit::TokenLogprobs;
use crate::engine::request::MAX_TOP_LOGPROBS;
use crate::error::Result;
use crate::kernels::digest::{digest_buffer, draft_digest};
use crate::kernels::draft::{DraftTopkArgs, draft_topk};
use crate::kernels::gather_rows::{GatherRowsArgs, gather_rows};

/// Rows read in one go; a round rarely emits more for one sequence.
const MAX_ROWS: usize = 16;

pub(super) struct LogprobReader {
    device: Device,
    /// Rows of logits, f32 `[MAX_ROWS, V]`, and of them the drawn tokens' and the likeliest's, `[2 * MAX_ROWS, 1]`.
    rows: Tensor,
    values: Tensor,
    index: Tensor,
    /// A row's own probability is 1: zeros.
    zeros: Tensor,
    tokens: Tensor,
    logp: Tensor,
    path_logp: Tensor,
    digests: Tensor,
}

impl LogprobReader {
    pub fn new(device: &Device, vocab_size: usize) -> Result<Self> {
        let tensor = |dtype, len: usize| Tensor::zeros(device, dtype, &[len]);
        Ok(Self {
            device: device.clone(),
            rows: Tensor::uninit(device, DType::F32, &[MAX_ROWS, vocab_size])?,
            values: tensor(DType::F32, 2 * MAX_ROWS)?.reshape(&[2 * MAX_ROWS, 1]),
            index: tensor(DType::I32, 2 * MAX_ROWS)?,
            zeros: tensor(DType::F32, MAX_ROWS)?,
            tokens: tensor(DType::I32, MAX_ROWS * MAX_TOP_LOGPROBS)?,
            logp: tensor(DType::F32, MAX_ROWS * MAX_TOP_LOGPROBS)?,
            path_logp: tensor(DType::F32, MAX_ROWS * MAX_TOP_LOGPROBS)?,
            digests: digest_buffer(device, MAX_ROWS, vocab_size)?,
        })
    }

    /// For each (row of `logits`, token drawn there) the token's log-probability and the `top` likeliest. Waits for the device.
    pub fn read(&self, logits: &Tensor, drawn: &[(usize, i32)], top: usize) -> Result<Vec<TokenLogprobs>> {
        let mut all = Vec::with_capacity(drawn.len());
        for drawn in drawn.chunks(MAX_ROWS) {
            self.read_some(logits, drawn, top, &mut all)?;
        }
        Ok(all)
    }

    fn read_some(
        &self,
        logits: &Tensor,
        drawn: &[(usize, i32)],
        top: usize,
        all: &mut Vec<TokenLogprobs>,
    ) -> Result<()> {
        let (count, vocab_size) = (drawn.len(), logits.dim(1));
        // The likeliest is needed in any case: it tells the sum of all.
        let k = top.clamp(1, MAX_TOP_LOGPROBS.min(vocab_size));
        let (index, rows) = (self.index.rows(0..count), self.rows.rows(0..count));
        index.write(&drawn.iter().map(|&(row, _)| row as i32).collect::<Vec<_>>())?;
        gather_rows(&self.device, GatherRowsArgs { src: logits, index: &index, out: &rows })?;
        let [tokens, logp, path_logp] = [&self.tokens, &self.logp, &self.path_logp]
            .map(|all| all.rows(0..count * k).reshape(&[count, k]));
        let digests = self.digests.rows(0..count);
        draft_digest(&self.device, &rows, &digests)?;
        draft_topk(
            &self.device,
            DraftTopkArgs {
                logits: &rows,
                digests: &digests,
                d2t: None,
                parent_logp: &self.zeros.rows(0..count),
                k,
                tokens: &tokens,
                logp: &logp,
                path_logp: &path_logp,
                post: None,
            },
        )?;
        let (tokens, logp) = (tokens.to_vec::<i32>()?, logp.to_vec::<f32>()?);
        let at = |row: usize, token: i32| (row * vocab_size) as i32 + token;
        let places: Vec<i32> = drawn
            .iter()
            .enumerate()
            .flat_map(|(row, &(_, token))| [at(row, token), at(row, tokens[row * k])])
            .collect();
        let (index, values) = (self.index.rows(0..2 * count), self.values.rows(0..2 * count));
        index.write(&places)?;
        let flat = self.rows.reshape(&[MAX_ROWS * vocab_size, 1]);
        gather_rows(&self.device, GatherRowsArgs { src: &flat, index: &index, out: &values })?;
        let values = values.to_vec::<f32>()?;
        for row in 0..count {
            let (logit, greatest) = (values[2 * row], values[2 * row + 1]);
            let pairs = tokens[row * k..][..k].iter().copied().zip(logp[row * k..][..k].iter().copied());
            all.push(TokenLogprobs {
                // As draft_topk computes it: the greatest logit's is the logarithm of the sum alone.
                logprob: (logit - greatest) + logp[row * k],
                top: pairs.take(top).collect(),
            });
        }
        Ok(())
    }
}
