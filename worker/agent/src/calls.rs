//! Calls of attempts that wait for the coordinator. They survive a broken stream: what has no answer is sent again
//! with the same id, and answers that come twice are dropped.

use std::collections::{BTreeMap, BTreeSet};

use prover_backend::CallError;
use prover_wire::protocol::{Answer, Call, ChannelMessage, ErrorKind, TaskResult, call};
use tokio::sync::{mpsc, oneshot};

use crate::event::Reply;
use crate::limits::PENDING_CALLS;

#[derive(Debug)]
enum Waiting {
    Once(oneshot::Sender<Result<Answer, CallError>>),
    TaskResults(mpsc::Sender<Result<TaskResult, tonic::Status>>),
    ChannelMessages(mpsc::Sender<Result<ChannelMessage, tonic::Status>>),
}

#[derive(Debug)]
struct Pending {
    call: Call,
    waiting: Waiting,
}

/// All calls without an answer, in the order in which they were made.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    pending: BTreeMap<u64, Pending>,
    last_id: u64,
    /// How many messages each attempt has sent to each channel.
    sent: BTreeMap<(u64, String), u64>,
}

impl Calls {
    /// Notes a call and answers with the message for the coordinator, or refuses it to its caller.
    pub(crate) fn add(&mut self, attempt_id: u64, mut call: call::Call, reply: Reply) -> Option<Call> {
        if self.pending.len() >= PENDING_CALLS {
            let message =
                format!("{PENDING_CALLS} calls of this worker wait for the coordinator: try again later");
            refuse(reply, CallError::LimitExceeded(message));
            return None;
        }
        self.last_id += 1;
        if let call::Call::SendChannelMessage(send) = &mut call {
            let sent = self
                .sent
                .entry((attempt_id, send.request_id.clone()))
                .or_default();
            send.number = *sent;
            *sent += 1;
        }
        let call = Call {
            call_id: self.last_id,
            attempt_id,
            call: Some(call),
        };
        let waiting = match reply {
            Reply::Once(sender) => Waiting::Once(sender),
            Reply::TaskResults(sender) => Waiting::TaskResults(sender),
            Reply::ChannelMessages(sender) => Waiting::ChannelMessages(sender),
        };
        self.pending.insert(
            call.call_id,
            Pending {
                call: call.clone(),
                waiting,
            },
        );
        Some(call)
    }

    /// What a new stream must carry first: each call that still has somebody waiting.
    pub(crate) fn again(&mut self) -> Vec<Call> {
        self.pending.retain(|_, pending| match &pending.waiting {
            Waiting::Once(sender) => !sender.is_closed(),
            Waiting::TaskResults(sender) => !sender.is_closed(),
            Waiting::ChannelMessages(sender) => !sender.is_closed(),
        });
        self.pending
            .values()
            .map(|pending| pending.call.clone())
            .collect()
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.pending.len()
    }

    /// A call that still waits.
    pub(crate) fn get(&self, call_id: u64) -> Option<Call> {
        self.pending.get(&call_id).map(|pending| pending.call.clone())
    }

    /// The coordinator's answer to a call. True: it can't be served now, and is to be sent again after a while.
    pub(crate) fn answer(&mut self, answer: Answer) -> bool {
        let refused = !answer.error.is_empty();
        match self.pending.get(&answer.call_id).map(|pending| &pending.waiting) {
            // It was answered before the stream broke, or its attempt is gone.
            None => return false,
            // What the coordinator can't take now is no fault of the attempt: it waits.
            Some(_) if refused && answer.error_kind() == ErrorKind::Unavailable => return true,
            // Subscriptions and channels are answered by their messages; only a refusal ends them.
            Some(Waiting::TaskResults(_) | Waiting::ChannelMessages(_)) if !refused => return false,
            Some(_) => {}
        }
        let Some(Pending { waiting, .. }) = self.pending.remove(&answer.call_id) else {
            return false;
        };
        let result = if refused {
            Err(refusal(&answer))
        } else {
            Ok(answer)
        };
        match (waiting, result) {
            // Who waits may have given up.
            (Waiting::Once(sender), result) => drop(sender.send(result)),
            (Waiting::TaskResults(sender), Err(error)) => drop(sender.try_send(Err(error.into_status()))),
            (Waiting::ChannelMessages(sender), Err(error)) => drop(sender.try_send(Err(error.into_status()))),
            (Waiting::TaskResults(_) | Waiting::ChannelMessages(_), Ok(_)) => {}
        }
        false
    }

    /// A task of a subscription is terminal. The subscription ends with the last one.
    pub(crate) fn task_result(&mut self, result: TaskResult) {
        let call_id = result.call_id;
        let Some(Pending {
            call,
            waiting: Waiting::TaskResults(sender),
        }) = self.pending.get_mut(&call_id)
        else {
            return;
        };
        let Some(call::Call::SubscribeTasks(subscription)) = &mut call.call else {
            return;
        };
        let before = subscription.request_ids.len();
        subscription.request_ids.retain(|id| *id != result.request_id);
        if subscription.request_ids.len() == before {
            // Answered already, before the stream broke.
            return;
        }
        let last = subscription.request_ids.is_empty();
        // A reader that is gone, or does not read, ends its subscription.
        if sender.try_send(Ok(result)).is_err() || last {
            self.pending.remove(&call_id);
        }
    }

    /// The next message of a channel.
    pub(crate) fn channel_message(&mut self, message: ChannelMessage) {
        let call_id = message.call_id;
        let Some(Pending {
            call,
            waiting: Waiting::ChannelMessages(sender),
        }) = self.pending.get_mut(&call_id)
        else {
            return;
        };
        let Some(call::Call::ReadChannel(reading)) = &mut call.call else {
            return;
        };
        if message.offset < reading.start_offset && !message.end_of_channel {
            // Read already, before the stream broke.
            return;
        }
        reading.start_offset = message.offset + 1;
        let ended = message.end_of_channel;
        if sender.try_send(Ok(message)).is_err() || ended {
            self.pending.remove(&call_id);
        }
    }

    /// Attempts are gone: who waits in them is told.
    pub(crate) fn drop_attempts(&mut self, attempts: &BTreeSet<u64>) {
        self.sent.retain(|(attempt, _), _| !attempts.contains(attempt));
        let gone: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| attempts.contains(&pending.call.attempt_id))
            .map(|(id, _)| *id)
            .collect();
        for id in gone {
            if let Some(Pending {
                waiting: Waiting::Once(sender),
                ..
            }) = self.pending.remove(&id)
            {
                let _ = sender.send(Err(CallError::Stopped));
            }
        }
    }
}

/// Tells a caller that its call is refused.
pub(crate) fn refuse(reply: Reply, error: CallError) {
    match reply {
        Reply::Once(sender) => drop(sender.send(Err(error))),
        Reply::TaskResults(sender) => drop(sender.try_send(Err(error.into_status()))),
        Reply::ChannelMessages(sender) => drop(sender.try_send(Err(error.into_status()))),
    }
}

fn refusal(answer: &Answer) -> CallError {
    let message = answer.error.clone();
    match answer.error_kind() {
        ErrorKind::NotFound => CallError::NotFound(message),
        ErrorKind::InvalidArgument => CallError::InvalidArgument(message),
        ErrorKind::LeaseLost => CallError::LeaseLost(message),
        ErrorKind::LimitExceeded => CallError::LimitExceeded(message),
        ErrorKind::Unavailable => CallError::Unavailable(message),
        ErrorKind::Unspecified => CallError::Internal(message),
    }
}

#[cfg(test)]
mod tests {
    use prover_wire::protocol::{CompleteMarker, ReadChannel, SendChannelMessage, SubscribeTasks};

    use super::*;

    fn mk_once(calls: &mut Calls) -> (Call, oneshot::Receiver<Result<Answer, CallError>>) {
        let (sender, receiver) = oneshot::channel();
        let call = call::Call::CompleteMarker(CompleteMarker {
            request_id: "m".to_owned(),
        });
        (calls.add(7, call, Reply::Once(sender)).unwrap(), receiver)
    }

    #[test]
    fn an_unanswered_call_is_sent_again_with_the_same_id_and_an_answered_one_is_not() {
        let mut calls = Calls::default();
        let (answered, mut first) = mk_once(&mut calls);
        let (waiting, _second) = mk_once(&mut calls);
        calls.answer(Answer {
            call_id: answered.call_id,
            ..Answer::default()
        });
        assert!(first.try_recv().unwrap().is_ok());
        assert_eq!(calls.again(), vec![waiting]);
    }

    #[test]
    fn messages_are_counted_for_each_attempt_and_channel_and_keep_their_number_when_they_are_sent_again() {
        let mut calls = Calls::default();
        let mut send = |attempt, channel: &str| {
            let call = call::Call::SendChannelMessage(SendChannelMessage {
                request_id: channel.to_owned(),
                ..SendChannelMessage::default()
            });
            let (sender, receiver) = oneshot::channel();
            let call = calls.add(attempt, call, Reply::Once(sender)).unwrap();
            let Some(call::Call::SendChannelMessage(sent)) = &call.call else {
                unreachable!("it is what was added")
            };
            (sent.number, call.clone(), receiver)
        };
        let (first, second) = (send(7, ""), send(7, ""));
        assert_eq!(
            (first.0, second.0, send(7, "other").0, send(8, "").0),
            (0, 1, 0, 0)
        );
        assert_eq!(calls.again(), vec![first.1, second.1]);
        calls.drop_attempts(&[7].into());
        assert_eq!(calls.sent.len(), 1, "the counts of an attempt that is gone go");
    }

    #[test]
    fn a_call_that_the_coordinator_can_not_take_now_is_sent_again_and_answered_later() {
        let mut calls = Calls::default();
        let (call, mut receiver) = mk_once(&mut calls);
        let unavailable = Answer {
            call_id: call.call_id,
            error: "the log can't be written now".to_owned(),
            error_kind: ErrorKind::Unavailable.into(),
            ..Answer::default()
        };
        assert!(calls.answer(unavailable));
        assert!(receiver.try_recv().is_err(), "its caller waits on");
        assert_eq!(calls.get(call.call_id), Some(call.clone()));
        let done = Answer {
            call_id: call.call_id,
            ..Answer::default()
        };
        assert!(!calls.answer(done));
        assert!(receiver.try_recv().unwrap().is_ok());
    }

    #[test]
    fn a_call_that_nobody_waits_for_is_not_sent_again() {
        let mut calls = Calls::default();
        drop(mk_once(&mut calls));
        assert!(calls.again().is_empty());
    }

    #[test]
    fn a_subscription_is_renewed_for_what_is_not_answered_and_ends_with_the_last() {
        let mut calls = Calls::default();
        let (sender, mut receiver) = mpsc::channel(8);
        let ids = vec!["a".to_owned(), "b".to_owned()];
        let call = call::Call::SubscribeTasks(SubscribeTasks { request_ids: ids });
        let call = calls.add(7, call, Reply::TaskResults(sender)).unwrap();
        let result = |id: &str| TaskResult {
            call_id: call.call_id,
            request_id: id.to_owned(),
            ..TaskResult::default()
        };
        calls.task_result(result("a"));
        let again = calls.again();
        let Some(call::Call::SubscribeTasks(renewed)) = &again[0].call else {
            panic!("{again:?}")
        };
        assert_eq!(renewed.request_ids, ["b"]);
        // The new stream may repeat what was answered.
        calls.task_result(result("a"));
        calls.task_result(result("b"));
        assert_eq!(receiver.try_recv().unwrap().unwrap().request_id, "a");
        assert_eq!(receiver.try_recv().unwrap().unwrap().request_id, "b");
        assert!(matches!(
            receiver.try_recv(),
            Err(mpsc::error::TryRecvError::Disconnected)
        ));
        assert_eq!(calls.len(), 0);
    }

    #[test]
    fn a_channel_is_read_on_from_the_first_message_that_was_not_delivered() {
        let mut calls = Calls::default();
        let (sender, mut receiver) = mpsc::channel(8);
        let call = call::Call::ReadChannel(ReadChannel {
            request_id: "c".to_owned(),
            start_offset: 3,
        });
        let call = calls.add(7, call, Reply::ChannelMessages(sender)).unwrap();
        let message = |offset, end_of_channel| ChannelMessage {
            call_id: call.call_id,
            offset,
            end_of_channel,
            ..ChannelMessage::default()
        };
        calls.channel_message(message(3, false));
        let again = calls.again();
        let Some(call::Call::ReadChannel(renewed)) = &again[0].call else {
            panic!("{again:?}")
        };
        assert_eq!(renewed.start_offset, 4);
        calls.channel_message(message(3, false));
        calls.channel_message(message(4, false));
        calls.channel_message(message(5, true));
        let offsets: Vec<u64> = std::iter::from_fn(|| receiver.try_recv().ok())
            .map(|m| m.unwrap().offset)
            .collect();
        assert_eq!(offsets, [3, 4, 5]);
        assert_eq!(calls.len(), 0);
    }

    #[test]
    fn a_lost_lease_is_told_as_such() {
        let mut calls = Calls::default();
        let (call, mut receiver) = mk_once(&mut calls);
        calls.answer(Answer {
            call_id: call.call_id,
            error: "gone".to_owned(),
            error_kind: ErrorKind::LeaseLost.into(),
            ..Answer::default()
        });
        assert_eq!(
            receiver.try_recv().unwrap(),
            Err(CallError::LeaseLost("gone".to_owned()))
        );
    }

    #[test]
    fn calls_of_a_stopped_attempt_end_and_those_of_others_stay() {
        let mut calls = Calls::default();
        let (_, mut stopped) = mk_once(&mut calls);
        let (sender, _other) = oneshot::channel();
        let call = call::Call::CompleteMarker(CompleteMarker {
            request_id: "m".to_owned(),
        });
        calls.add(8, call, Reply::Once(sender)).unwrap();
        calls.drop_attempts(&[7].into());
        assert_eq!(stopped.try_recv().unwrap(), Err(CallError::Stopped));
        assert_eq!(calls.len(), 1);
    }

    #[test]
    fn too_many_calls_are_refused_by_name_of_the_limit() {
        let mut calls = Calls::default();
        let mut receivers = Vec::new();
        for _ in 0..PENDING_CALLS {
            receivers.push(mk_once(&mut calls).1);
        }
        let (sender, mut receiver) = oneshot::channel();
        let call = call::Call::CompleteMarker(CompleteMarker {
            request_id: "m".to_owned(),
        });
        assert!(calls.add(7, call, Reply::Once(sender)).is_none());
        assert!(matches!(
            receiver.try_recv().unwrap(),
            Err(CallError::LimitExceeded(_))
        ));
    }
}
