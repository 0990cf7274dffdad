//! Endpoints that take turns, each with a say in whether and when to dial again. Pure: `now` is an
//! argument.

use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind};
use crate::runtime::reconnect::RetryDecision;
use crate::time::after;

/// The endpoints of a client. Owned by the reader thread.
pub(crate) struct EndpointPool {
    /// The time before which an endpoint asked not to be dialed. One entry for each endpoint, and
    /// at least one.
    not_before: Vec<Option<Instant>>,
    /// The number of dials that have been started.
    dials: usize,
    /// The number of endpoints in a row that failed with a permanent error.
    refusals: usize,
}

impl EndpointPool {
    pub(crate) fn new(endpoints: usize) -> Self {
        EndpointPool { not_before: vec![None; endpoints.max(1)], dials: 0, refusals: 0 }
    }

    /// Begins the next dial, and returns the index of its endpoint.
    pub(crate) fn begin(&mut self) -> usize {
        let turn = self.turn();
        self.dials += 1;
        turn
    }

    /// Returns what follows the failure of the last dial or the end of its connection.
    ///
    /// A request, a certificate or a login that one endpoint or its proxy refuses may be good at
    /// another, so the client gives up only when all have failed permanently in a row. A
    /// `Retry-After` holds for the endpoint that sent it.
    pub(crate) fn decision(
        &mut self,
        error: &Error,
        retry_after_max: Duration,
        now: Instant,
    ) -> RetryDecision {
        let last = self.dials.saturating_sub(1) % self.not_before.len();
        let is_final = !error.is_retryable();
        let is_of_endpoint =
            matches!(error.kind(), ErrorKind::Http | ErrorKind::Tls | ErrorKind::Proxy);
        if is_final && !is_of_endpoint {
            return RetryDecision::GiveUp;
        }
        self.refusals = if is_final { self.refusals + 1 } else { 0 };
        if self.refusals >= self.not_before.len() {
            return RetryDecision::GiveUp;
        }
        let asked = error.retry_after();
        self.not_before[last] = asked.map(|wait| after(now, wait.min(retry_after_max)));
        let left = self.not_before[self.turn()].map(|until| until.saturating_duration_since(now));
        left.filter(|left| !left.is_zero()).map_or(RetryDecision::Retry, RetryDecision::RetryAfter)
    }

    /// Returns the index of the endpoint that the next dial goes to.
    fn turn(&self) -> usize {
        self.dials % self.not_before.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_secs(300);

    fn refused(status: u16, retry_after: Option<Duration>) -> Error {
        let response = http::Response::builder().status(status).body(Vec::new());
        Error::refused("a:1", response.expect("a response"), retry_after)
    }

    fn dropped() -> Error {
        Error::new(ErrorKind::Io, "reading from a:1")
    }

    #[test]
    fn endpoints_take_turns_whatever_happens() {
        let mut endpoint_pool = EndpointPool::new(3);
        assert_eq!([(); 7].map(|()| endpoint_pool.begin()), [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn a_single_endpoint_that_refuses_for_good_ends_it() {
        let mut endpoint_pool = EndpointPool::new(1);
        endpoint_pool.begin();
        assert_eq!(endpoint_pool.decision(&dropped(), MAX, Instant::now()), RetryDecision::Retry);
        endpoint_pool.begin();
        assert_eq!(
            endpoint_pool.decision(&refused(404, None), MAX, Instant::now()),
            RetryDecision::GiveUp
        );
    }

    #[test]
    fn of_several_all_have_to_refuse_in_a_row() {
        let mut endpoint_pool = EndpointPool::new(2);
        let now = Instant::now();
        let mut meets = |error: Error| {
            endpoint_pool.begin();
            endpoint_pool.decision(&error, MAX, now)
        };
        assert_eq!(meets(refused(404, None)), RetryDecision::Retry);
        // The second one is only down: it may come back.
        assert_eq!(meets(dropped()), RetryDecision::Retry);
        assert_eq!(meets(refused(404, None)), RetryDecision::Retry);
        assert_eq!(meets(refused(401, None)), RetryDecision::GiveUp);
        // What a proxy refuses to one, it or another proxy may grant to the other.
        let login = || Error::new(ErrorKind::Proxy, "login").permanent();
        assert_eq!(meets(dropped()), RetryDecision::Retry);
        assert_eq!([meets(login()), meets(login())], [RetryDecision::Retry, RetryDecision::GiveUp]);
    }

    #[test]
    fn each_endpoint_has_its_say_about_every_status() {
        let now = Instant::now();
        for status in 200..600 {
            let passes = !(400..500).contains(&status) || [408, 418, 425, 429].contains(&status);
            let alone = if passes { RetryDecision::Retry } else { RetryDecision::GiveUp };
            let mut one = EndpointPool::new(1);
            one.begin();
            assert_eq!(one.decision(&refused(status, None), MAX, now), alone, "{status}");

            // Of three, the second gets this status, and the others refuse for good.
            let mut three = EndpointPool::new(3);
            let mut meets = |status| {
                three.begin();
                three.decision(&refused(status, None), MAX, now)
            };
            assert_eq!([meets(400), meets(status)], [RetryDecision::Retry; 2], "{status}");
            assert_eq!(meets(403), alone, "{status}");
        }
    }

    #[test]
    fn a_permanent_error_that_no_other_endpoint_can_mend_ends_it_at_once() {
        for error in [
            Error::config("a bad URL"),
            Error::new(ErrorKind::HandlerPanicked, "it panicked"),
            Error::stopped(),
        ] {
            let mut endpoint_pool = EndpointPool::new(2);
            endpoint_pool.begin();
            assert_eq!(endpoint_pool.decision(&error, MAX, Instant::now()), RetryDecision::GiveUp);
        }
    }

    #[test]
    fn retry_after_binds_the_endpoint_that_asked_for_it() {
        let minute = Duration::from_secs(60);
        let now = Instant::now();
        let mut one = EndpointPool::new(1);
        one.begin();
        assert_eq!(
            one.decision(&refused(503, Some(minute)), MAX, now),
            RetryDecision::RetryAfter(minute)
        );
        one.begin();
        assert_eq!(
            one.decision(&refused(503, Some(2 * MAX)), MAX, now),
            RetryDecision::RetryAfter(MAX)
        );

        let mut two = EndpointPool::new(2);
        two.begin();
        // The other one has not asked for anything.
        assert_eq!(two.decision(&refused(503, Some(minute)), MAX, now), RetryDecision::Retry);
        two.begin();
        // Ten seconds later it is the first one's turn again.
        let later = now + Duration::from_secs(10);
        assert_eq!(
            two.decision(&dropped(), MAX, later),
            RetryDecision::RetryAfter(Duration::from_secs(50))
        );
        two.begin();
        assert_eq!(two.decision(&dropped(), MAX, now + minute), RetryDecision::Retry);
        two.begin();
        assert_eq!(two.decision(&dropped(), MAX, now + minute), RetryDecision::Retry);
    }
}
