//! The opening script: what is said and awaited after each opening. Its run is pure: `now` is an
//! argument.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::event::MessageRef;
use crate::session::protocol::{Context, Outgoing};
use crate::session_event::Rejection;
use crate::time::after;

/// The steps after an opening, in order: a greeting that is awaited, a login, settings of the
/// connection. The session is ready once all are done.
///
/// Data that comes meanwhile is delivered at once. A step that is late, and one that the venue
/// rejects, ends the connection with the kind [`Opening`](crate::ErrorKind::Opening) and the name
/// of the step. A permanent rejection ends the client; otherwise the client dials again with
/// backoff, because such a connection never was stable.
///
/// ```
/// use std::time::Duration;
/// use tautline::session::{OpeningScript, Outgoing, Rejection, StepOutcome};
///
/// const WITHIN: Duration = Duration::from_secs(5);
///
/// let script = OpeningScript::new()
///     .expect("welcome", WITHIN, |message, _| match message.text() {
///         Some("welcome") => StepOutcome::Accepted,
///         _ => StepOutcome::Unrelated,
///     })
///     .request(
///         "login",
///         WITHIN,
///         |context| Outgoing::text(format!("login {}", context.unix_millis())),
///         |message, _| match message.text() {
///             Some("login ok") => StepOutcome::Accepted,
///             Some("login failed") => StepOutcome::Rejected(Rejection::permanent("the key")),
///             _ => StepOutcome::Unrelated,
///         },
///     );
/// ```
#[derive(Clone, Default)]
pub struct OpeningScript {
    steps: Vec<Step>,
}

#[derive(Clone)]
pub(crate) struct Step {
    pub(crate) name: &'static str,
    /// The time from the start of the step to its answer.
    pub(crate) within: Option<Duration>,
    pub(crate) make: Option<Make>,
    pub(crate) matcher: Option<Matcher>,
}

/// Makes the message of a step. Runs on the heartbeat thread.
pub(crate) type Make = Arc<dyn Fn(&Context) -> Outgoing + Send + Sync>;

/// Looks for the answer to a step. Runs on the reader thread.
pub(crate) type Matcher = Arc<dyn Fn(MessageRef<'_>, &Context) -> StepOutcome + Send + Sync>;

/// The meaning of a message to the step that awaits an answer.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum StepOutcome {
    /// Not the answer: it goes its usual way, through
    /// [`classify`](crate::session::Protocol::classify).
    Unrelated,
    /// The answer that was awaited. [`Context::answer`] keeps it; it is delivered to nobody.
    Accepted,
    /// The answer, and it is a refusal. It is delivered to nobody.
    Rejected(Rejection),
}

impl OpeningScript {
    /// Creates a script without steps: the session is ready at once.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a step that awaits what the venue says by itself, for `within` at most.
    ///
    /// `matcher` runs on the reader thread for every message while the step lasts, data included,
    /// so it has to say [`StepOutcome::Unrelated`] fast.
    pub fn expect(
        self,
        step: &'static str,
        within: Duration,
        matcher: impl Fn(MessageRef<'_>, &Context) -> StepOutcome + Send + Sync + 'static,
    ) -> Self {
        self.add(step, Some(within), None, Some(Arc::new(matcher)))
    }

    /// Adds a step that sends what `make` returns at that moment and awaits the answer, for
    /// `within` at most from the start of the step, the wait for the rate limits included.
    ///
    /// `make` runs on the heartbeat thread, which also writes pongs: it must not block, and a
    /// signature is quick enough. `matcher` is as for [`expect`](OpeningScript::expect), and
    /// listens before the message leaves.
    pub fn request(
        self,
        step: &'static str,
        within: Duration,
        make: impl Fn(&Context) -> Outgoing + Send + Sync + 'static,
        matcher: impl Fn(MessageRef<'_>, &Context) -> StepOutcome + Send + Sync + 'static,
    ) -> Self {
        self.add(step, Some(within), Some(Arc::new(make)), Some(Arc::new(matcher)))
    }

    /// Adds a step that sends what `make` returns at that moment, and is done when the message has
    /// been written. `make` is as for [`request`](OpeningScript::request).
    pub fn send(
        self,
        step: &'static str,
        make: impl Fn(&Context) -> Outgoing + Send + Sync + 'static,
    ) -> Self {
        self.add(step, None, Some(Arc::new(make)), None)
    }

    fn add(
        mut self,
        name: &'static str,
        within: Option<Duration>,
        make: Option<Make>,
        matcher: Option<Matcher>,
    ) -> Self {
        self.steps.push(Step { name, within, make, matcher });
        self
    }

    /// Returns `true` if the heartbeat thread is the one that finds the script done.
    pub(crate) fn ends_with_send(&self) -> bool {
        self.steps.last().is_some_and(|step| step.matcher.is_none())
    }

    pub(crate) fn steps(&self) -> &[Step] {
        &self.steps
    }
}

impl fmt::Debug for OpeningScript {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.steps.iter().map(|step| step.name)).finish()
    }
}

/// The run of a script on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ScriptRun {
    /// The index of the current step.
    step: usize,
    /// The message of the step has still to be written.
    is_unwritten: bool,
    /// The time by which the step has to be done.
    until: Option<Instant>,
}

impl ScriptRun {
    /// Begins with the first step; `None` when there is none.
    pub(crate) fn begin(script: &OpeningScript, now: Instant) -> Option<Self> {
        Self::at(script, 0, now)
    }

    fn at(script: &OpeningScript, step: usize, now: Instant) -> Option<Self> {
        let Step { within, make, .. } = script.steps.get(step)?;
        let until = within.map(|within| after(now, within));
        Some(ScriptRun { step, is_unwritten: make.is_some(), until })
    }

    /// Returns the index of the current step.
    pub(crate) fn step(&self) -> usize {
        self.step
    }

    pub(crate) fn is_unwritten(&self) -> bool {
        self.is_unwritten
    }

    pub(crate) fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Returns `true` if the current step has taken too long.
    pub(crate) fn is_late(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// The message of step number `step` is about to be written: from here on its answer may come.
    pub(crate) fn writing(self, step: usize) -> Self {
        ScriptRun { is_unwritten: self.is_unwritten && step != self.step, ..self }
    }

    /// There was no room for the message of step number `step`.
    pub(crate) fn not_written(self, step: usize) -> Self {
        ScriptRun { is_unwritten: self.is_unwritten || step == self.step, ..self }
    }

    /// The message of step number `step` has been written. Returns the run from there; `None` when
    /// the script is done.
    pub(crate) fn written(self, step: usize, script: &OpeningScript, now: Instant) -> Option<Self> {
        // The answer may have been faster than the news of the write.
        let awaits_answer = script.steps().get(step).is_some_and(|step| step.matcher.is_some());
        if step != self.step || awaits_answer {
            Some(self)
        } else {
            Self::at(script, step + 1, now)
        }
    }

    /// Step number `step` has its answer. Returns the run from there; `None` when the script is
    /// done.
    pub(crate) fn accepted(
        self,
        step: usize,
        script: &OpeningScript,
        now: Instant,
    ) -> Option<Self> {
        if step != self.step { Some(self) } else { Self::at(script, step + 1, now) }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const STEPS: usize = 3;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Kind {
        Expect,
        Request,
        Send,
    }

    impl Kind {
        const ALL: [Kind; 3] = [Kind::Expect, Kind::Request, Kind::Send];

        fn within(self) -> Option<Duration> {
            match self {
                Kind::Expect => Some(2 * SECOND),
                Kind::Request => Some(4 * SECOND),
                Kind::Send => None,
            }
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Input {
        /// The message of the current step is about to be written.
        Writing,
        /// The message of the step that was to be written last has found no room, or it has.
        NotWritten,
        Written,
        /// The matcher of the current step has found its answer.
        Accepted,
        /// The same, of steps that are not the current one.
        WrongStep,
        /// A second passes.
        Pass,
    }

    const INPUTS: [Input; 6] = [
        Input::Writing,
        Input::NotWritten,
        Input::Written,
        Input::Accepted,
        Input::WrongStep,
        Input::Pass,
    ];

    /// The simplest run of a script: the steps are done one after the other.
    #[derive(Clone, Copy)]
    struct Reference {
        kinds: [Kind; STEPS],
        /// The number of steps that are done.
        done: usize,
        /// The message of the current step is with the writer.
        is_written: bool,
        began: Instant,
        now: Instant,
    }

    impl Reference {
        fn kind(&self) -> Option<Kind> {
            self.kinds.get(self.done).copied()
        }

        fn done(&mut self, step: usize) {
            assert_eq!(step, self.done, "in order, none twice, none left out");
            self.done += 1;
            (self.is_written, self.began) = (false, self.now);
        }
    }

    fn script(kinds: &[Kind]) -> OpeningScript {
        const NAMES: [&str; STEPS] = ["first", "second", "third"];
        kinds.iter().zip(NAMES).fold(OpeningScript::new(), |script, (kind, name)| {
            let within = kind.within().unwrap_or_default();
            let matcher = |_: MessageRef<'_>, _: &Context| StepOutcome::Accepted;
            let make = |_: &Context| Outgoing::text("");
            match kind {
                Kind::Expect => script.expect(name, within, matcher),
                Kind::Request => script.request(name, within, make, matcher),
                Kind::Send => script.send(name, make),
            }
        })
    }

    /// A script that runs beside the reference.
    #[derive(Clone, Copy)]
    struct State {
        run: Option<ScriptRun>,
        reference: Reference,
        /// The step whose message is being written: one thread writes, one message at a time.
        writing: Option<usize>,
    }

    impl State {
        /// Returns `false` if this cannot happen, or changes nothing.
        fn on(&mut self, input: Input, script: &OpeningScript) -> bool {
            let State { run, reference, writing } = self;
            let (Some(current), Some(kind)) = (*run, reference.kind()) else { return false };
            let (step, now) = (current.step(), reference.now);
            match input {
                // As the heartbeat thread does: it writes what is unwritten, and then tells.
                Input::Writing if writing.is_none() && current.is_unwritten() => {
                    *writing = Some(step);
                    *run = Some(current.writing(step));
                    reference.is_written = true;
                }
                Input::NotWritten => {
                    let Some(of) = writing.take() else { return false };
                    *run = Some(current.not_written(of));
                    reference.is_written &= of != reference.done;
                }
                Input::Written => {
                    let Some(of) = writing.take() else { return false };
                    *run = current.written(of, script, now);
                    if kind == Kind::Send && of == reference.done {
                        reference.done(of);
                    }
                }
                // As the reader does: nothing listens before the message is being written.
                Input::Accepted if kind != Kind::Send && !current.is_unwritten() => {
                    *run = current.accepted(step, script, now);
                    reference.done(step);
                }
                Input::WrongStep => {
                    for other in (0..=STEPS).filter(|other| *other != step) {
                        assert_eq!(current.accepted(other, script, now), *run);
                        assert_eq!(current.written(other, script, now), *run);
                        assert_eq!(current.writing(other), current);
                        assert_eq!(current.not_written(other), current);
                    }
                    return false;
                }
                Input::Pass => reference.now += SECOND,
                _ => return false,
            }
            check(*run, reference);
            true
        }
    }

    /// Tries every sequence up to `depth`. Returns the number of those that end the script.
    fn try_all(state: State, script: &OpeningScript, depth: usize) -> usize {
        if state.run.is_none() || depth == 0 {
            return usize::from(state.run.is_none());
        }
        let tries = INPUTS.map(|input| {
            let mut next = state;
            let is_new = next.on(input, script);
            if is_new { try_all(next, script, depth - 1) } else { 0 }
        });
        tries.iter().sum()
    }

    fn check(run: Option<ScriptRun>, reference: &Reference) {
        let Some(kind) = reference.kind() else { return assert_eq!(run, None) };
        let run = run.expect("there are steps left");
        assert_eq!(run.step(), reference.done);
        assert_eq!(run.is_unwritten(), kind != Kind::Expect && !reference.is_written);
        let until = kind.within().map(|within| reference.began + within);
        assert_eq!(run.until(), until);
        assert_eq!(run.is_late(reference.now), until.is_some_and(|at| at <= reference.now));
    }

    #[test]
    fn every_sequence_does_each_step_once_and_in_order() {
        let start = Instant::now();
        for number in 0..Kind::ALL.len().pow(STEPS as u32) {
            let kinds = [number / 9, number / 3 % 3, number % 3].map(|kind| Kind::ALL[kind]);
            let script = script(&kinds);
            let reference =
                Reference { kinds, done: 0, is_written: false, began: start, now: start };
            let run = ScriptRun::begin(&script, start);
            check(run, &reference);
            assert!(try_all(State { run, reference, writing: None }, &script, 10) > 0);
        }
    }

    #[test]
    fn an_answer_that_is_faster_than_the_news_of_the_write_is_taken() {
        let script = script(&[Kind::Request, Kind::Request, Kind::Send]);
        let now = Instant::now();
        let run = ScriptRun::begin(&script, now).expect("there are steps");
        let run = run.writing(0).accepted(0, &script, now).expect("the second");
        assert_eq!((run.step(), run.is_unwritten()), (1, true));
        // The news comes, and is none of the second step, which may have left as well.
        assert_eq!(run.written(0, &script, now), Some(run));
        let run = run.writing(1);
        assert_eq!(run.not_written(0), run);
        assert_eq!(run.accepted(1, &script, now).map(|run| run.step()), Some(2));
    }

    #[test]
    fn a_send_ends_by_its_write_alone_and_has_no_deadline() {
        let script = script(&[Kind::Send]);
        let now = Instant::now();
        let run = ScriptRun::begin(&script, now).expect("there is a step");
        assert!(!run.is_late(now + 9999 * SECOND) && script.ends_with_send());
        let run = run.writing(0).not_written(0);
        assert!(run.is_unwritten());
        assert_eq!(run.writing(0).written(0, &script, now), None);
    }

    #[test]
    fn a_script_without_steps_is_done_and_one_with_a_last_answer_does_not_end_with_a_send() {
        let empty = OpeningScript::new();
        assert_eq!(ScriptRun::begin(&empty, Instant::now()), None);
        assert!(!empty.ends_with_send());
        assert!(!script(&[Kind::Send, Kind::Request]).ends_with_send());
        assert!(!script(&[Kind::Send, Kind::Expect]).ends_with_send());
    }

    #[test]
    fn debug_shows_the_names_of_the_steps_alone() {
        let shown = format!("{:?}", script(&[Kind::Expect, Kind::Request]));
        assert_eq!(shown, r#"["first", "second"]"#);
    }
}
