//! [`Mailbox`]: small results that a kernel writes into the host's memory as soon as its turn comes.
//!
//! A copy of the driver's own and a wait for it go by the copy engine, two semaphores and the driver. Here the host watches a word of its own
//! memory, and asks the driver only whether all is well.

use super::draft::ChildrenPost;
use super::host_words::{PostWordsArgs, post_words};
use crate::device::{DType, Device, PinnedBuffer, Tensor};
use crate::error::Result;

/// Words on their way to the host: those of one [`Mailbox::post`] at a time, read by [`Mailbox::wait`].
pub struct Mailbox {
    device: Device,
    words: PinnedBuffer<i32>,
    /// The ticket of the latest post that is here.
    flag: PinnedBuffer<i32>,
    /// As kernels see both.
    mapped_words: Tensor,
    mapped_flag: Tensor,
    /// Blocks that have brought their words, of a kernel that has several: 0 between launches.
    arrivals: Tensor,
    /// Of the latest post: its ticket, and how many words.
    ticket: i32,
    count: usize,
}

impl Mailbox {
    /// Room for so many words.
    ///
    /// # Errors
    /// A lack of page-locked memory.
    pub fn new(device: &Device, len: usize) -> Result<Self> {
        let (words, flag) = (PinnedBuffer::new(device, len)?, PinnedBuffer::new(device, 1)?);
        let (mapped_words, mapped_flag) = (words.mapped(), flag.mapped());
        let arrivals = Tensor::zeros(device, DType::I32, &[1])?;
        Ok(Self {
            device: device.clone(),
            words,
            flag,
            mapped_words,
            mapped_flag,
            arrivals,
            ticket: 0,
            count: 0,
        })
    }

    /// Has the device bring the first `count` words of `source`, i32 `[n]`, here once it has done what was issued before. What was posted before
    /// must have been waited for.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] for another dtype; a driver failure.
    pub fn post(&mut self, source: &Tensor, count: usize) -> Result<()> {
        self.expect(count);
        post_words(
            &self.device,
            PostWordsArgs {
                src: &source.rows(0..count),
                out: &self.mapped_words.rows(0..count),
                flag: &self.mapped_flag,
                ticket: self.ticket,
            },
        )
    }

    /// Expects so many words that a kernel of the caller's brings, instead of a post: the ticket that it has to leave.
    pub fn expect(&mut self, count: usize) -> i32 {
        (self.ticket, self.count) = (self.ticket.wrapping_add(1), count);
        self.ticket
    }

    /// Where [`draft_topk`](super::draft::draft_topk) leaves the children of so many rows, `top_k` each: 2 rows top_k words, which
    /// were expected. `call` is as [`ChildrenPost`] has it, with the ticket.
    pub fn children_post<'a>(&'a self, (rows, top_k): (usize, usize), call: &'a Tensor) -> ChildrenPost<'a> {
        let words = self.mapped_words.rows(0..2 * rows * top_k).reshape(&[2, rows, top_k]);
        ChildrenPost { call, words, flag: &self.mapped_flag, arrivals: &self.arrivals }
    }

    /// Waits for what was posted last: its words. All that was issued before it has been done then.
    ///
    /// # Errors
    /// The first failure of work issued so far.
    pub fn wait(&self) -> Result<&[i32]> {
        self.flag.wait_for(0, self.ticket)?;
        Ok(&self.words.as_slice()[..self.count])
    }

    /// As [`Mailbox::wait`], of children: tokens, and as many f32 log-probabilities behind them.
    ///
    /// # Errors
    /// As [`Mailbox::wait`].
    pub fn wait_children(&self) -> Result<(&[i32], &[f32])> {
        let both = self.wait()?;
        let (tokens, logps) = both.split_at(both.len() / 2);
        Ok((tokens, bytemuck::cast_slice(logps)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceChoice;

    fn mailbox() -> (Mailbox, Tensor) {
        let device = Device::open(DeviceChoice::Host).unwrap();
        let source = Tensor::from_slice(&device, &[7, 8, 9], &[3]).unwrap();
        (Mailbox::new(&device, 3).unwrap(), source)
    }

    /// Also on a stream that puts work off until somebody asks (`SIMT_LAZY=1`).
    #[test]
    fn mailbox_brings_what_was_posted_last() {
        let (mut mailbox, source) = mailbox();
        for count in [2, 3, 0, 1] {
            mailbox.post(&source, count).unwrap();
            assert_eq!(mailbox.wait().unwrap(), &[7, 8, 9][..count]);
            assert_eq!(mailbox.wait().unwrap().len(), count, "asked again");
        }
    }

    /// No one waits for ever.
    #[test]
    fn mailbox_that_nothing_is_posted_to_says_so() {
        let (mut mailbox, source) = mailbox();
        mailbox.post(&source, 1).unwrap();
        mailbox.ticket += 1;
        assert!(mailbox.wait().unwrap_err().to_string().contains("not written"));
    }
}
