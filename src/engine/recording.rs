//! Recording for replay: every round drafts a wide tree, whatever it costs, and commits one token, so that each position of the text
//! becomes the root of a tree once. Where draws are a matter of chance the target is asked about every drafted row: its probabilities
//! are what an oracle may know. Greedy draws are no matter of chance, nor are draws whose noise the drafts know; knowing them would be
//! knowing the outcome, so they are not recorded beyond the text. Costs and policies play no part; the text is the usual one.

use std::io::Write;

use crate::control::DraftRound;
use crate::control::plan::{Plan, SelectionRule, StopRule, WidthRule};
use crate::device::Tensor;
use crate::engine::commit::Emission;
use crate::engine::proposer::Proposer;
use crate::engine::round::run_levels;
use crate::engine::verifier::Verified;
use crate::engine::{Engine, SequenceId};
use crate::error::{Error, Result};
use crate::reference::sampler::law;
use crate::replay::{RecordHeader, RecordShape, RecordWriter, RecordedTree};
use crate::sampling::SamplingParams;
use crate::tree::DraftTree;

/// Where the record goes.
pub(super) struct Recording {
    writer: RecordWriter,
    shape: RecordShape,
    /// The sequence whose text is open.
    sequence: Option<SequenceId>,
}

/// A tree of rows as the drafter brought it.
struct Drafted {
    /// Rows after the root, as children of earlier rows.
    child_of: Vec<u32>,
    tokens: Vec<i32>,
    logps: Vec<f32>,
    /// The rows as a tree for the target.
    rows: DraftTree,
}

impl Engine {
    /// Writes the header; from now on every [`Engine::step`] advances the one running sequence by one token and records what the
    /// drafter would have offered there and what the target says to it (see [`crate::replay`]).
    ///
    /// # Errors
    /// [`Error::Input`]: no drafter or Medusa heads, an impossible shape, more than one sequence at once, one that is running; a writer that fails.
    pub fn set_record(&mut self, out: impl Write + Send + 'static, header: &RecordHeader) -> Result<()> {
        header.shape.validate()?;
        if self.proposer.is_none() {
            return Err(Error::Input("a record needs a drafter: give one with --draft".into()));
        }
        if self.sequences.len() != 1 {
            return Err(Error::Input("an engine that records serves one sequence at a time".into()));
        }
        if self.proposer.as_ref().and_then(Proposer::num_heads).is_some() {
            return Err(Error::Input(
                "a replay prices every level as a drafter pass, which Medusa heads do not have: record with another drafter".into(),
            ));
        }
        self.check_idle()?;
        let writer = RecordWriter::new(out, header).map_err(record_error)?;
        // What was published without features being kept has no part of the drafter's.
        self.pool.clear_cache();
        self.recording = Some(Recording { writer, shape: header.shape, sequence: None });
        Ok(())
    }

    /// Flushes and closes the record.
    ///
    /// # Errors
    /// What the writer says.
    pub fn finish_record(&mut self) -> Result<()> {
        self.recording.take().map_or(Ok(()), |recording| recording.writer.finish()).map_err(record_error)
    }

    /// The recording counterpart of a round over the sequence in `slot`.
    pub(super) fn record_round(&mut self, slot: usize, shape: RecordShape) -> Result<Vec<Emission>> {
        self.times.begin()?;
        let drafted = self.draft_widely(slot, shape)?;
        let greedy = self.sequence(slot).request.sampling.is_greedy();
        let is_chance = !greedy && !self.proposer.as_ref().is_some_and(Proposer::couples);
        let root = drafted.rows.token(0);
        let trees = [if is_chance { drafted.rows } else { DraftTree::new(root) }];
        self.verifier.pass.clear();
        self.fill_tree(slot, &trees[0]);
        let logits = self.run_target(&[slot], &trees)?;
        self.times.mark_verify()?;
        let draws = self.verifier.read_draws()?;
        self.times.collect()?;
        let tokens = drafted.tokens;
        let probs = match is_chance {
            true => probabilities(&logits, &self.sequence(slot).request.sampling, &tokens, shape.top_k)?,
            false => Vec::new(),
        };
        let tree =
            RecordedTree::new(root, draws[0], shape.top_k, drafted.child_of, tokens, drafted.logps, probs)?;
        let (id, prompt_len) = (self.sequence(slot).id, self.sequence(slot).root());
        if let Some(recording) = &mut self.recording {
            if recording.sequence.replace(id) != Some(id) {
                recording.writer.begin_sequence(prompt_len).map_err(record_error)?;
            }
            recording.writer.push(&tree).map_err(record_error)?;
        }
        let plain = [DraftTree::new(root)];
        let verified = [Verified { bonus: draws[0], drawn: vec![draws[0]], ..Verified::default() }];
        let emissions = self.commit((&[slot], &plain, &verified), (&[], &[]), true)?;
        self.times.stats.count_round(&plain, &verified, &emissions);
        self.times.end();
        Ok(emissions)
    }

    /// The shape of records, if the engine records.
    pub(super) fn record_shape(&self) -> Option<RecordShape> {
        self.recording.as_ref().map(|recording| recording.shape)
    }

    /// Drafts the recorded tree of the sequence's present position.
    fn draft_widely(&mut self, slot: usize, shape: RecordShape) -> Result<Drafted> {
        let plan = Plan {
            top_k: shape.top_k,
            max_levels: shape.levels,
            width: WidthRule::Beam(shape.beam),
            stop: StopRule::Never,
            selection: SelectionRule::All,
            max_draft_tokens: crate::control::MAX_DRAFT_TOKENS,
            floor: 0,
        };
        let view = self.sequence(slot).view(shape.levels);
        let mut round = DraftRound::fixed(plan, &[view]);
        let Engine { proposer, sequences, times, pool, masks, prefetch, .. } = self;
        if let Some(proposer) = proposer {
            let parts = (proposer, masks, &*prefetch);
            run_levels(parts, (sequences, pool), &[slot], (times, |_: &mut DraftRound| {}), &mut round)?;
        }
        // One sequence's candidates lie row by row, so a node's index among them says which child of which row it is.
        let nodes = round.pool(0).nodes();
        let mut run: Vec<_> = nodes[1..].iter().filter(|node| node.is_expanded()).collect();
        run.sort_by_key(|node| node.row);
        let mut rows = DraftTree::new(view.root_token);
        for node in &run {
            rows.push(node.candidate as usize / shape.top_k, node.token);
        }
        Ok(Drafted {
            child_of: run.iter().map(|node| node.candidate).collect(),
            tokens: nodes[1..].iter().map(|node| node.token).collect(),
            logps: nodes[1..].iter().map(|node| node.logp).collect(),
            rows,
        })
    }
}

/// The chance that the target draws each child's token after the child's parent, from the logits at every row.
fn probabilities(
    logits: &Tensor,
    sampling: &SamplingParams,
    tokens: &[i32],
    top_k: usize,
) -> Result<Vec<f32>> {
    let vocab_size = logits.dim(1);
    let logits = logits.to_vec::<f32>()?;
    let mut probs = Vec::with_capacity(tokens.len());
    for (children, row) in tokens.chunks_exact(top_k).zip(logits.chunks_exact(vocab_size)) {
        let law = law(row, sampling);
        probs.extend(children.iter().map(|&token| law.get(token as usize).map_or(0.0, |&prob| prob as f32)));
    }
    Ok(probs)
}

fn record_error(error: std::io::Error) -> Error {
    Error::Device(format!("the record cannot be written: {error}"))
}
