//! The faults of a simulated exchange, and the ones that are still to come. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

/// A fault that a simulated exchange shows on request: the argument of
/// [`Exchange::misbehave`](super::Exchange::misbehave).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Misbehavior {
    /// Ends every open connection at once, without a close frame.
    Disconnect,
    /// Closes every open connection with this code.
    Close(u16),
    /// Reads on every open connection and sends nothing more, not even pongs.
    FallSilent,
    /// Announces the end of every open connection the way the exchange does, and closes it after
    /// the time that the exchange gives.
    AnnounceShutdown,
    /// Does the next subscription requests and loses the acknowledgments: so many messages.
    LoseAcks(usize),
    /// Sends the next acknowledgments twice: so many messages.
    DoubleAcks(usize),
    /// Sends acknowledgments after this time from now on. Data of the topics comes before.
    DelayAcks(Duration),
    /// Carries out the next calls and loses the replies: so many messages.
    LoseReplies(usize),
    /// Carries out calls and sends their replies after this time from now on.
    DelayReplies(Duration),
    /// Rejects the next logins.
    RejectLogins(usize),
    /// Knows no such topic from now on. It stays active where it is.
    Refuse(String),
    /// Sends no data of this topic on the connections that are open now, where it stays active,
    /// until it is subscribed anew.
    Mute(String),
    /// Is under maintenance for this time from now on: opens connections and says so where the
    /// exchange does that (Kraken), and otherwise refuses opening handshakes with status 503.
    Maintenance(Duration),
}

/// A fault of the connections that are open when it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Close(u16),
    FallSilent,
    AnnounceShutdown,
}

/// The faults of messages that are still to come.
#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) lost_acks: usize,
    pub(super) doubled_acks: usize,
    pub(super) ack_delay: Duration,
    pub(super) lost_replies: usize,
    pub(super) reply_delay: Duration,
    pub(super) rejected_logins: usize,
    pub(super) refused: BTreeSet<String>,
}

/// The number of times that a message is sent, and the time after which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sending {
    pub(super) copies: usize,
    pub(super) delay: Duration,
}

impl Faults {
    pub(super) fn next_ack(&mut self) -> Sending {
        let copies = match take(&mut self.lost_acks) {
            true => 0,
            false => 1 + usize::from(take(&mut self.doubled_acks)),
        };
        Sending { copies, delay: self.ack_delay }
    }

    pub(super) fn next_reply(&mut self) -> Sending {
        let copies = usize::from(!take(&mut self.lost_replies));
        Sending { copies, delay: self.reply_delay }
    }

    /// Returns `true` if the next login is to be rejected.
    pub(super) fn next_login(&mut self) -> bool {
        take(&mut self.rejected_logins)
    }
}

/// Takes one, if there is one.
fn take(count: &mut usize) -> bool {
    let has_one = *count > 0;
    *count -= usize::from(has_one);
    has_one
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acks_are_lost_first_then_doubled_and_then_sent_once() {
        let mut faults = Faults { lost_acks: 2, doubled_acks: 1, ..Faults::default() };
        let copies: Vec<usize> = (0..5).map(|_| faults.next_ack().copies).collect();
        assert_eq!(copies, [0, 0, 2, 1, 1]);
    }

    #[test]
    fn replies_are_lost_once_and_logins_rejected_once() {
        let mut faults = Faults { lost_replies: 1, rejected_logins: 1, ..Faults::default() };
        assert_eq!([faults.next_reply().copies, faults.next_reply().copies], [0, 1]);
        assert_eq!([faults.next_login(), faults.next_login()], [true, false]);
    }
}
