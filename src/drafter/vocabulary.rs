//! [`DraftVocabulary`]: the part of the target's vocabulary that a drafter proposes from.
//!
//! Most text is made of few tokens, and the head over all of them is the larger half of an EAGLE-1 drafter beside a target of a large
//! vocabulary. FR-Spec (Zhao et al., arXiv 2502.14856) keeps only the rows of the tokens that are frequent. The text stays the target's:
//! what the drafter cannot propose is drawn all the same, and ends a draft.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::control::MAX_TOP_K;
use crate::device::{Device, Tensor};
use crate::error::{Error, Result};
use crate::kernels::gather_rows::{GatherRowsArgs, gather_rows};
use crate::weights::{Checkpoint, read_integers};

/// Which tokens a drafter may propose, of a target's whole vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DraftVocabulary {
    /// The tokens with the lowest ids. Byte-pair encodings number tokens as they learn them, the most frequent first.
    Lowest(usize),
    /// Those that a file lists in any order: a JSON array, or what `torch.save` writes of a list or a tensor (FR-Spec's `freq_32768.pt`).
    Listed(PathBuf),
}

impl FromStr for DraftVocabulary {
    type Err = Error;

    /// Reads a number of tokens or the path of a file.
    fn from_str(text: &str) -> Result<Self> {
        match text.parse() {
            Ok(count) => Ok(Self::Lowest(count)),
            Err(_) if text.is_empty() => Err(Error::Input("give a number of tokens or a file of ids".into())),
            Err(_) => Ok(Self::Listed(text.into())),
        }
    }
}

impl fmt::Display for DraftVocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lowest(count) => count.fmt(f),
            Self::Listed(path) => path.display().fmt(f),
        }
    }
}

impl DraftVocabulary {
    /// The tokens, ascending, for a target of `vocab_size` tokens.
    ///
    /// # Errors
    /// A file that is none or lists a token twice or one that does not exist; fewer tokens than a node may have children, or no fewer than
    /// the target has.
    pub(crate) fn tokens(&self, vocab_size: usize) -> Result<HotTokens> {
        let mut ids = match self {
            Self::Lowest(count) => (0..(*count).min(vocab_size) as i64).collect(),
            Self::Listed(path) => read_integers(path)?,
        };
        ids.sort_unstable();
        let error = |reason: String| match self {
            Self::Lowest(_) => Error::Input(format!("draft vocabulary: {reason}")),
            Self::Listed(path) => Error::format(path, reason),
        };
        if let Some(id) = ids.iter().find(|&&id| !(0..vocab_size as i64).contains(&id)) {
            return Err(error(format!("token {id} is none of the target's {vocab_size}")));
        }
        if let Some(twice) = ids.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(error(format!("token {} is listed twice", twice[0])));
        }
        if ids.len() < MAX_TOP_K {
            return Err(error(format!(
                "{} tokens are too few: a node has up to {MAX_TOP_K} children",
                ids.len()
            )));
        }
        if ids.len() == vocab_size {
            return Err(error(format!("all {vocab_size} tokens of the target are in it: leave it out")));
        }
        Ok(HotTokens { ids: ids.into_iter().map(|id| id as i32).collect(), vocab_size })
    }
}

/// The tokens of a draft vocabulary, checked against a target's.
pub(crate) struct HotTokens {
    /// Ascending, so that of equally likely tokens the draft's first is the target's, too.
    ids: Vec<i32>,
    vocab_size: usize,
}

impl HotTokens {
    /// The rows of `head` that are kept, `[tokens, hidden]`; `head` is `[vocab, hidden]`. Under the rehearsal of `checkpoint` only a shape.
    pub(super) fn cut(&self, device: &Device, head: &Tensor, checkpoint: &Checkpoint) -> Result<Tensor> {
        let shape = [self.ids.len(), head.dim(1)];
        if checkpoint.is_rehearsal() {
            return Ok(Tensor::without_memory(device, head.dtype(), &shape));
        }
        let index = Tensor::from_slice(device, &self.ids, &[self.ids.len()])?;
        let out = Tensor::uninit(device, head.dtype(), &shape)?;
        gather_rows(device, GatherRowsArgs { src: head, index: &index, out: &out })?;
        // Weights: launches that overlap read them before they wait for others.
        device.synchronize()?;
        Ok(out)
    }

    /// Offsets from draft ids to target ids, i32 `[tokens]`.
    pub(super) fn d2t(&self, device: &Device) -> Result<Tensor> {
        let offsets: Vec<i32> = (0..).zip(&self.ids).map(|(draft_id, id)| id - draft_id).collect();
        Tensor::from_slice(device, &offsets, &[offsets.len()])
    }

    /// Fails where a drafter of `size` tokens, whose ids are those `offsets` from the target's, has a vocabulary of its own already.
    pub(super) fn check(&self, size: usize, offsets: Option<&[i32]>) -> Result<()> {
        let is_targets = offsets.is_none_or(|offsets| offsets.iter().all(|&offset| offset == 0));
        if size == self.vocab_size && is_targets {
            return Ok(());
        }
        Err(Error::Input(format!(
            "the drafter was trained with a vocabulary of its own, {size} of the target's {} tokens: leave the draft vocabulary out",
            self.vocab_size
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceChoice;

    fn listed(ids: &str) -> (tempfile::NamedTempFile, DraftVocabulary) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), ids).unwrap();
        let vocabulary = DraftVocabulary::Listed(file.path().into());
        (file, vocabulary)
    }

    #[test]
    fn numbers_and_paths_are_told_apart() {
        for (text, vocabulary) in [
            ("32768", DraftVocabulary::Lowest(32768)),
            ("./32768", DraftVocabulary::Listed("./32768".into())),
            ("freq_32768.pt", DraftVocabulary::Listed("freq_32768.pt".into())),
            ("-1", DraftVocabulary::Listed("-1".into())),
        ] {
            assert_eq!(text.parse::<DraftVocabulary>().unwrap(), vocabulary);
            assert_eq!(vocabulary.to_string(), text);
        }
        assert!("".parse::<DraftVocabulary>().is_err());
    }

    #[test]
    fn tokens_are_sorted_and_checked() {
        let ids: Vec<i32> = (0..33).map(|i| i * i % 97).collect();
        let (_file, vocabulary) = listed(&format!("{ids:?}"));
        let mut sorted = ids.clone();
        sorted.sort_unstable();
        assert_eq!(vocabulary.tokens(100).unwrap().ids, sorted);
        assert_eq!(DraftVocabulary::Lowest(40).tokens(41).unwrap().ids, (0..40).collect::<Vec<_>>());
        let reason = |vocabulary: &DraftVocabulary, vocab_size| {
            vocabulary.tokens(vocab_size).err().expect("a mistake").to_string()
        };
        assert!(reason(&vocabulary, 96).contains("token 96 is none of the target's 96"));
        assert!(reason(&listed("[-1, 3]").1, 20).contains("token -1 is none"));
        assert!(reason(&listed("[7, 3, 7]").1, 20).contains("token 7 is listed twice"));
        assert!(reason(&listed("[7, 3]").1, 20).contains("2 tokens are too few"));
        assert!(reason(&DraftVocabulary::Lowest(0), 20).contains("draft vocabulary: 0 tokens are too few"));
        for whole in [50, 51, usize::MAX] {
            assert!(reason(&DraftVocabulary::Lowest(whole), 50).contains("all 50 tokens"));
        }
        assert!(reason(&DraftVocabulary::Listed("/no/such/file".into()), 20).contains("/no/such/file"));
    }

    #[test]
    fn kept_rows_are_the_tokens_own() {
        let device = Device::open(DeviceChoice::Host).unwrap();
        let (vocab_size, hidden) = (100, 8);
        let head: Vec<f32> = (0..vocab_size * hidden).map(|i| i as f32).collect();
        let head = Tensor::from_slice(&device, &head, &[vocab_size, hidden]).unwrap();
        let ids: Vec<i32> = (0..33).map(|i| i * i % 97).collect();
        let (_file, vocabulary) = listed(&format!("{ids:?}"));
        let tokens = vocabulary.tokens(vocab_size).unwrap();
        let golden =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/eagle1_random/drafter");
        let checkpoint = Checkpoint::open(&crate::config::ModelSource::from(golden.as_path())).unwrap();
        let cut = tokens.cut(&device, &head, &checkpoint).unwrap().to_vec::<f32>().unwrap();
        let offsets = tokens.d2t(&device).unwrap().to_vec::<i32>().unwrap();
        let kept: Vec<i32> = (0..).zip(&offsets).map(|(draft_id, offset)| draft_id + offset).collect();
        assert_eq!(kept, tokens.ids);
        let firsts: Vec<i32> = cut.chunks_exact(hidden).map(|row| row[0] as i32 / hidden as i32).collect();
        assert_eq!(firsts, kept);
        assert!(tokens.check(vocab_size, None).is_ok() && tokens.check(33, None).is_err());
        let mut own = vec![0; vocab_size];
        assert!(tokens.check(vocab_size, Some(&own)).is_ok());
        own[7] = 1;
        assert!(tokens.check(vocab_size, Some(&own)).is_err());
    }
}
