//! A model of the machine, built with `--cfg shuttle` alone: see CONTRIBUTING.md.
//!
//! The crate's own code runs in it unchanged. A scheduler interleaves its threads, time passes when
//! the model says so, sockets and the TLS engine are in memory, and the server follows a script.
//! The stand-ins come in where the real things do: locks, channels, threads and the clock by
//! [`crate::sync`], the socket and the TLS engine by [`crate::connection`], the dialer where the
//! client takes it. Whatever they wait for comes down to [`world::block`] and [`world::change`].

pub(crate) mod dialer;
pub(crate) mod engine;
#[cfg(test)]
mod explorer;
pub(crate) mod socket;
pub(crate) mod sync;
pub(crate) mod wake_pair;
pub(crate) mod world;

#[cfg(test)]
mod checks;
#[cfg(test)]
mod mutation;
#[cfg(test)]
mod session_checks;
