//! What users of the crate rely on, tested against scripted venues.

mod closing;
mod delivery;
mod dialling;
mod heartbeat;
mod keys;
mod openssl;
mod reconnecting;
mod sending;
mod stopping;
mod support;
mod trust;
