//! Messages that wait at the same time travel together: a frame, a wakeup and a system call for all of them.
//!
//! Owns how batches are made and taken apart. What is in a batch means what it means alone: each message is checked,
//! judged and acknowledged by itself.

use prost::Message;

use crate::limits::BATCH_BYTES;
use crate::protocol::{
    CoordinatorBatch, CoordinatorMessage, WorkerBatch, WorkerMessage, coordinator_message, worker_message,
};

/// A message that may travel with others of its kind.
pub trait Batched: Message + Sized {
    /// Makes one message of several.
    fn batch(messages: Vec<Self>) -> Self;

    /// Whether it never travels in a batch.
    fn is_alone(&self) -> bool;

    /// The messages that it stands for, in their order: itself, or what is in the batch.
    fn each(self) -> Each<Self>;
}

/// The messages of a batch, or the only one.
#[derive(Debug)]
pub enum Each<M> {
    /// Of no batch.
    One(std::iter::Once<M>),
    /// Of a batch.
    Many(std::vec::IntoIter<M>),
}

impl<M> Iterator for Each<M> {
    type Item = M;

    fn next(&mut self) -> Option<M> {
        match self {
            Each::One(one) => one.next(),
            Each::Many(many) => many.next(),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        match self {
            Each::One(one) => one.size_hint(),
            Each::Many(many) => many.size_hint(),
        }
    }
}

impl<M> ExactSizeIterator for Each<M> {}

impl Batched for WorkerMessage {
    fn batch(messages: Vec<Self>) -> Self {
        WorkerBatch { messages }.into()
    }

    fn is_alone(&self) -> bool {
        use worker_message::Message;
        matches!(self.message, None | Some(Message::Hello(_) | Message::Batch(_)))
    }

    fn each(self) -> Each<Self> {
        match self.message {
            Some(worker_message::Message::Batch(batch)) => Each::Many(batch.messages.into_iter()),
            _ => Each::One(std::iter::once(self)),
        }
    }
}

impl Batched for CoordinatorMessage {
    fn batch(messages: Vec<Self>) -> Self {
        CoordinatorBatch { messages }.into()
    }

    fn is_alone(&self) -> bool {
        use coordinator_message::Message;
        matches!(
            self.message,
            None | Some(Message::Welcome(_) | Message::NotLeader(_) | Message::Batch(_))
        )
    }

    fn each(self) -> Each<Self> {
        match self.message {
            Some(coordinator_message::Message::Batch(batch)) => Each::Many(batch.messages.into_iter()),
            _ => Each::One(std::iter::once(self)),
        }
    }
}

/// Makes batches of what waits in a queue.
#[derive(Debug)]
pub struct Batcher<M> {
    /// Found no place in the batch before.
    left: Option<M>,
}

impl<M> Default for Batcher<M> {
    fn default() -> Self {
        Batcher { left: None }
    }
}

impl<M: Batched> Batcher<M> {
    /// What comes before everything that waits in the queue.
    pub fn left(&mut self) -> Option<M> {
        self.left.take()
    }

    /// `first` and what follows it at once, at most `most` messages; `next` takes from the queue.
    pub fn gather(&mut self, first: M, most: usize, mut next: impl FnMut() -> Option<M>) -> M {
        if most < 2 || first.is_alone() {
            return first;
        }
        let Some(second) = next() else { return first };
        let mut bytes = first.encoded_len();
        let mut batch = Vec::with_capacity(4);
        batch.push(first);
        let mut following = Some(second);
        while let Some(message) = following {
            bytes += message.encoded_len();
            if message.is_alone() || bytes > BATCH_BYTES {
                self.left = Some(message);
                break;
            }
            batch.push(message);
            following = (batch.len() < most).then(&mut next).flatten();
        }
        match batch.pop() {
            Some(only) if batch.is_empty() => only,
            last => {
                batch.extend(last);
                M::batch(batch)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::Validate;
    use crate::limits::MESSAGES_PER_BATCH;
    use crate::protocol::{AttemptProgress, AttemptStarted, WorkerHello};

    fn mk_started(attempt_id: u64) -> WorkerMessage {
        AttemptStarted { attempt_id }.into()
    }

    fn mk_large(attempt_id: u64) -> WorkerMessage {
        let encoded = vec![7; crate::limits::OPAQUE_BYTES];
        AttemptProgress { attempt_id, encoded }.into()
    }

    /// What is sent of a queue.
    fn sent(messages: Vec<WorkerMessage>, most: usize) -> Vec<WorkerMessage> {
        let mut queue = VecDeque::from(messages);
        let mut batcher = Batcher::default();
        let mut sent = Vec::new();
        while let Some(first) = batcher.left().or_else(|| queue.pop_front()) {
            sent.push(batcher.gather(first, most, || queue.pop_front()));
        }
        sent
    }

    #[test]
    fn what_waits_travels_together_and_in_its_order() {
        let messages: Vec<_> = (1..=600).map(mk_started).collect();
        for (most, frames) in [(0, 600), (1, 600), (2, 300), (MESSAGES_PER_BATCH, 3), (1_000, 1)] {
            let sent = sent(messages.clone(), most);
            assert_eq!(sent.len(), frames, "at most {most}");
            let each: Vec<_> = sent.into_iter().flat_map(Batched::each).collect();
            assert_eq!(each, messages);
        }
    }

    #[test]
    fn a_hello_travels_alone() {
        let hello: WorkerMessage = WorkerHello::default().into();
        let messages = vec![mk_started(1), mk_started(2), hello.clone(), mk_started(3)];
        let sent = sent(messages, MESSAGES_PER_BATCH);
        let lengths: Vec<_> = sent.iter().map(|message| message.clone().each().len()).collect();
        assert_eq!(lengths, [2, 1, 1]);
        assert_eq!(sent[1], hello);
    }

    #[test]
    fn a_batch_ends_before_it_is_too_large_and_nothing_is_lost() {
        let messages: Vec<_> = (1..=100).map(mk_large).collect();
        let sent = sent(messages.clone(), MESSAGES_PER_BATCH);
        assert!(sent.len() > 1, "100 messages of 64 KiB are no single batch");
        for message in &sent {
            message.validate().unwrap();
        }
        let each: Vec<_> = sent.into_iter().flat_map(Batched::each).collect();
        assert_eq!(each, messages);
    }

    #[test]
    fn one_message_alone_is_no_batch() {
        assert_eq!(sent(vec![mk_started(1)], MESSAGES_PER_BATCH), [mk_started(1)]);
        let large = sent(vec![mk_large(1), mk_started(2)], MESSAGES_PER_BATCH);
        assert_eq!(large.len(), 1, "what fits travels with what is large");
    }
}
